"""The registry of image data sets of several domains."""

from dataclasses import dataclass
from typing import Any

from supercm_lightning.utils.options import SuperCMError

DOMAIN_LAYOUT = (
    "<domain>/<class>/*.jpg or <domain>/images/<class>/*.jpg, or list files image_list/<domain>.txt (or "
    "<domain>_train.txt and <domain>_test.txt) with lines of a path and a label"
)


def plain_name(name: str) -> str:
    """A name without case, spaces and punctuation, so that spellings can be compared."""
    return "".join(character for character in name.lower() if character.isalnum())


@dataclass(frozen=True)
class Domain:
    """One domain of a data set, with the short code of task names such as A→W and its number of images, where known."""

    name: str
    code: str
    count: int | None = None
    aliases: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Whether a name is one of this domain; case, spaces, hyphens and underscores are ignored."""
        return plain_name(name) in {plain_name(known) for known in (self.name, self.code, *self.aliases)}


@dataclass(frozen=True)
class DomainSet:
    """A data set of several domains before it is read.

    Attributes:
        domains: Its domains, each with one set of images or, by list files, a training and a test set.
        num_classes: Number of classes, or None where the files tell.
        folders: Names of its folder under the root, in any spelling; the root itself may be that folder too.
        origin: Where to get it.
        layout: What is expected in its folder.
    """

    domains: tuple[Domain, ...]
    num_classes: int | None = None
    folders: tuple[str, ...] = ()
    origin: str = ""
    layout: str = DOMAIN_LAYOUT

    def find(self, dataset: str, option: str, name: str) -> Domain:
        """The domain of a name, code or alias; if there is none, the error lists the domains."""
        for domain in self.domains:
            if domain.is_called(name):
                return domain
        known = ", ".join(d.name if d.name == d.code else f"{d.name} ({d.code})" for d in self.domains)
        raise SuperCMError(f"{option}={name!r}: {dataset} has the domains {known}.")


def _set(num_classes: int | None, domains: dict[str, tuple[Any, ...]], *folders: str, **about: str) -> DomainSet:
    """A set whose `domains` are, by their short code, a name, a number of images and further names."""
    listed = (Domain(name, code, count, tuple(aliases)) for code, (name, count, *aliases) in domains.items())
    return DomainSet(tuple(listed), num_classes, folders, **about)


DIGITS = _set(10, {"M": ("mnist", None), "U": ("usps", None), "S": ("svhn", None)})
"""Digits: their files are those of the registered image data sets."""

DOMAIN_SETS: dict[str, DomainSet] = {
    "office31": _set(
        31,
        {"A": ("amazon", 2817), "D": ("dslr", 498), "W": ("webcam", 795)},
        *("office31", "domain_adaptation_images", "office"),
        origin="the page of its authors (Saenko et al., ECCV 2010: Adapting Visual Category Models to New Domains)",
    ),
    "office_home": _set(
        65,
        {"Ar": ("Art", 2427), "Cl": ("Clipart", 4365), "Pr": ("Product", 4439), "Rw": ("Real World", 4357, "real")},
        *("office_home", "OfficeHomeDataset", "OfficeHomeDataset_10072016"),
        origin="the page of its authors (Venkateswara et al., CVPR 2017: Deep Hashing Network for UDA)",
    ),
    "office_caltech10": _set(
        10,
        {
            **{"A": ("amazon", 958), "D": ("dslr", 157), "W": ("webcam", 295)},
            "C": ("caltech10", 1123, "caltech", "caltech256"),
        },
        *("office_caltech10", "office_caltech", "office_caltech_10"),
        origin="copies of the ten classes that Office-31 and Caltech-256 share (Gong et al., CVPR 2012: Geodesic Flow "
        "Kernel for UDA)",
    ),
    "imageclef": _set(
        12,
        {
            "C": ("caltech256", 600, "caltech"),
            "I": ("imagenet", 600, "ilsvrc", "ilsvrc2012", "imagenet2012"),
            "P": ("pascal", 600, "voc", "pascalvoc", "pascalvoc2012"),
            "B": ("bing", 600),
        },
        *("imageclef", "image_clef", "image_clef_da", "imageclef_da"),
        origin="the ImageCLEF 2014 domain adaptation task; its list files are those of the code of CDAN",
        layout="list files list/<domain>List.txt or image_list/<domain>.txt with lines of a path and a label, where "
        "<domain> is c, i, p or b, and the images that they name; or <domain>/<class>/*.jpg",
    ),
    "visda2017": _set(
        12,
        {"S": ("synthetic", 152397, "train", "syn"), "R": ("real", 55388, "validation", "val")},
        *("visda2017", "visda", "visda_2017"),
        origin="the page of the VisDA-2017 challenge, classification track: train.tar and validation.tar",
        layout="train/<class>/*.png (synthetic) and validation/<class>/*.jpg (real), or list files "
        "image_list/<domain>.txt with lines of a path and a label",
    ),
    "pacs": _set(
        7,
        {"A": ("art_painting", 2048, "art"), "C": ("cartoon", 2344), "P": ("photo", 1670), "S": ("sketch", 3929)},
        *("pacs", "kfold", "pacs_data"),
        origin="the page of its authors (Li et al., ICCV 2017: Deeper, Broader and Artier Domain Generalization)",
    ),
    "domainnet": _set(
        345,
        {
            **{"C": ("clipart", 48129), "I": ("infograph", 51605), "P": ("painting", 72266)},
            **{"Q": ("quickdraw", 172500), "R": ("real", 172947), "S": ("sketch", 69128)},
        },
        *("domainnet", "visda2019"),
        origin="the page of its authors (Peng et al., ICCV 2019: Moment Matching for Multi-Source Domain Adaptation), "
        "cleaned version",
        layout="<domain>/<class>/*.jpg with <domain>_train.txt and <domain>_test.txt, lines of a path and a label",
    ),
}
"""Registered data sets of photographs and drawings by name."""
