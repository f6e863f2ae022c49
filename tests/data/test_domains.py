"""Readers of sets of several domains, on small trees in the layouts that are in use, right and wrong ones."""

from pathlib import Path

import pytest

from supercm_lightning.data import DOMAIN_SETS
from supercm_lightning.data.sources.domain_files import DomainFiles, find_files, folder_set, read_list
from supercm_lightning.data.sources.domains import Domain, DomainSet

CLASSES = ("bike", "mug", "pen")
SMALL = DomainSet((Domain("amazon", "A"), Domain("Real World", "Rw", aliases=("real",))), folders=("office",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write(base: Path, *files: str) -> None:
    """Empty files: readers look at names alone."""
    for file in files:
        (base / file).parent.mkdir(parents=True, exist_ok=True)
        (base / file).touch()


def write_tree(base: Path, classes: tuple[str, ...] = CLASSES, each: int = 2) -> None:
    write(base, *(f"{name}/{number} {name}.jpg" for name in classes for number in range(each)))


def write_list(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def find(
    root: Path, spec: DomainSet = SMALL, source: str = "A", target: str = "Rw", name: str = "small"
) -> DomainFiles:
    return find_files(name, spec, root, [spec.find(name, "source", source)], spec.find(name, "target", target))


def labels(found: DomainFiles, name: str) -> dict[str, int]:
    """Label of each file by its own name."""
    return {file.name: label for file, label in found.files[name]}


class TestNames:
    """Domains by name, short code or another spelling."""

    @pytest.mark.parametrize("name", ["Real World", "Real_World", "RealWorld", "real-world", "real", "Rw", "RW"])
    def test_spellings_of_one_domain(self, name):
        assert DOMAIN_SETS["office_home"].find("office_home", "target", name).name == "Real World"

    @pytest.mark.parametrize(
        ("dataset", "codes", "names"),
        [
            ("office31", "A D W", "amazon dslr webcam"),
            ("office_home", "Ar Cl Pr Rw", "Art Clipart Product Real World"),
            ("office_caltech10", "A D W C", "amazon dslr webcam caltech10"),
            ("imageclef", "C I P B", "caltech256 imagenet pascal bing"),
            ("visda2017", "S R", "synthetic real"),
            ("visda2017", "train validation", "synthetic real"),
            ("pacs", "A C P S", "art_painting cartoon photo sketch"),
        ],
    )
    def test_codes_of_the_registered_sets(self, dataset, codes, names):
        spec = DOMAIN_SETS[dataset]
        assert " ".join(spec.find(dataset, "source", code).name for code in codes.split()) == names

    @pytest.mark.parametrize("dataset", DOMAIN_SETS)
    def test_no_name_means_two_domains(self, dataset):
        domains = DOMAIN_SETS[dataset].domains
        for domain in domains:
            for name in (domain.name, domain.code, *domain.aliases):
                assert [other for other in domains if other.is_called(name)] == [domain]

    def test_unknown_name(self):
        with pytest.raises(
            ValueError, match=r"target='kindle': office31 has the domains amazon \(A\), dslr \(D\), web"
        ):
            DOMAIN_SETS["office31"].find("office31", "target", "kindle")


class TestFolders:
    """<domain>/<class>/… and <domain>/images/<class>/…."""

    @pytest.mark.parametrize("place", ["office", "Office", ""])
    @pytest.mark.parametrize("real", ["Real World", "Real_World", "real"])
    def test_both_forms_under_the_root_or_in_a_folder_of_the_set(self, root, place, real):
        write_tree(root / place / "amazon/images")
        write_tree(root / place / real, each=3)
        found = find(root)
        assert found.class_names == CLASSES
        assert labels(found, "amazon") == {f"{n} {name}.jpg": k for k, name in enumerate(CLASSES) for n in range(2)}
        assert len(found.files["Real World"]) == 9
        assert all(file.is_file() for file, _ in found.files["Real World"])

    def test_what_else_lies_beside_the_images_is_left_out(self, root):
        write_tree(root / "amazon/images")
        write_tree(root / "amazon/interest_points")
        write_tree(root / "Real World")
        write(root / "Real World", "mug/notes.txt", "mug/._0 mug.jpg", ".cache/x.jpg")
        found = find(root)
        assert found.class_names == CLASSES
        assert [len(files) for files in found.files.values()] == [6, 6]

    def test_target_without_labels(self, root):
        write_tree(root / "amazon")
        for place in ("Real World", "Real World/images"):
            write(root / place, "x.jpg", "y.png")
            found = find(root)
            assert {label for _, label in found.files["Real World"]} == {-1}
        assert {file.parent.name for file, _ in found.files["Real World"]} == {"images"}

    def test_classes_that_only_one_domain_has(self, root):
        write_tree(root / "amazon", ("bike", "cap", "mug"))
        write_tree(root / "Real World", ("bike", "mug", "pen", "ruler"))
        with pytest.raises(
            ValueError, match="amazon and Real World differ: cap only in amazon; pen, ruler only in Real World"
        ):
            find(root)

    def test_class_folder_without_images_in_the_target(self, root):
        write_tree(root / "amazon")
        write_tree(root / "Real World", CLASSES[:2])
        (root / "Real World/pen").mkdir()
        with pytest.raises(ValueError, match="amazon and Real World differ: pen only in amazon"):
            find(root)

    def test_source_without_class_folders(self, root):
        write(root / "amazon", "x.jpg")
        write_tree(root / "Real World")
        with pytest.raises(FileNotFoundError, match=r"source domain amazon has no class folders in .*amazon. Expected"):
            find(root)

    def test_two_folders_for_one_domain(self, root):
        write_tree(root / "amazon")
        write_tree(root / "Real World")
        write_tree(root / "RealWorld")
        with pytest.raises(ValueError, match="Real World and RealWorld are both names of the domain Real World"):
            find(root)

    def test_domain_folder_without_images(self, root):
        write_tree(root / "amazon")
        (root / "Real World").mkdir()
        with pytest.raises(FileNotFoundError, match=r"no images of Real World in .*Real World"):
            find(root)


class TestMissing:
    """Says what was looked for, in which layout, and where to get it."""

    @pytest.mark.parametrize("dataset", DOMAIN_SETS)
    def test_set_that_is_not_there(self, root, dataset):
        spec = DOMAIN_SETS[dataset]
        source, target = spec.domains[:2]
        with pytest.raises(FileNotFoundError) as error:
            find_files(dataset, spec, root, [source], target)
        message = str(error.value)
        for part in (dataset, source.name, target.name, str(root), spec.folders[0], spec.layout, spec.origin):
            assert part in message

    def test_root_that_is_not_there(self, root):
        with pytest.raises(FileNotFoundError, match=r"amazon and Real World not found in .*nowhere"):
            find(root / "nowhere")

    def test_one_domain_is_missing(self, root):
        write_tree(root / "office/amazon")
        with pytest.raises(FileNotFoundError, match=r"small: Real World not found in .*office. Expected there"):
            find(root)

    def test_folder_of_no_domains(self, root):
        with pytest.raises(
            FileNotFoundError, match=r"root=.*nowhere is not a folder. Expected there: <domain>/<class>"
        ):
            folder_set(root / "nowhere")
        with pytest.raises(FileNotFoundError, match="no domains in"):
            folder_set(root)


class TestLists:
    """Lines of a path and a label."""

    def test_labels_are_renumbered_as_folders_number_them(self, root):
        # As in Office-Home, whose lists count Drill, Exit_Sign, … from 0.
        for domain in ("amazon", "Real World"):
            write_tree(root / domain)
        lists = {"amazon": "amazon", "Real_World": "Real World"}
        for file, folder in lists.items():
            lines = [
                f"{folder}/{name}/{n} {name}.jpg {k}" for k, name in enumerate(("mug", "bike", "pen")) for n in range(2)
            ]
            write_list(root / f"image_list/{file}.txt", *lines)
        listed = find(root)
        for file in lists:
            (root / f"image_list/{file}.txt").unlink()
        folders = find(root)
        assert listed.class_names == folders.class_names == CLASSES
        for name in ("amazon", "Real World"):
            assert sorted(listed.files[name]) == sorted(folders.files[name])

    def test_list_chooses_among_the_images(self, root):
        for domain in ("amazon", "Real World"):
            write_tree(root / domain)
            write_list(
                root / f"image_list/{domain}.txt", *(f"{domain}/{c}/1 {c}.jpg {k}" for k, c in enumerate(CLASSES))
            )
        assert [len(files) for files in find(root).files.values()] == [3, 3]

    def test_one_list_alone_is_not_used(self, root):
        for domain in ("amazon", "Real World"):
            write_tree(root / domain)
        write_list(root / "image_list/amazon.txt", "amazon/mug/1 mug.jpg 0")
        assert [len(files) for files in find(root).files.values()] == [6, 6]

    @pytest.mark.parametrize("naming", ["list/{}List.txt", "list/{}_list.txt", "image_list/{}.txt"])
    def test_imageclef_as_distributed(self, root, naming, recwarn):
        """Flat folders, one of them with class folders; paths of another machine."""
        base = root / "image-clef"
        for code in "cipb":
            inside = [
                f"{k:02d}/b{k}_{n}.JPEG" if code == "b" else f"n{k}_{n}.JPEG" for k in range(12) for n in range(50)
            ]
            write(base / code, *inside)
            lines = [f"/data/image-clef/{code}/{file} {number // 50}" for number, file in enumerate(inside)]
            write_list(base / naming.format(code), *lines)
        spec = DOMAIN_SETS["imageclef"]
        for source, target in (("I", "P"), ("pascal", "imagenet"), ("C", "b")):
            found = find(root, spec, source, target, "imageclef")
            assert found.num_classes == 12
            assert found.class_names is None
            for files in found.files.values():
                assert len(files) == 600
                assert all(file.is_file() for file, _ in files)
                assert [label for _, label in files] == [k for k in range(12) for _ in range(50)]
        assert not [warning for warning in recwarn if "expected" in str(warning.message)]

    def test_numbers_from_one_on_with_class_folders(self, root):
        for domain in ("amazon", "Real World"):
            write_tree(root / domain)
            lines = [f"{domain}/{c}/{n} {c}.jpg {k + 1}" for k, c in enumerate(CLASSES) for n in range(2)]
            write_list(root / f"image_list/{domain}.txt", *lines)
        assert sorted(labels(find(root), "amazon").values()) == [0, 0, 1, 1, 2, 2]

    def test_path_with_other_spelling_of_the_domain(self, root):
        write_tree(root / "Real World")
        write_list(
            root / "image_list/r.txt",
            "OfficeHome/RealWorld/mug/0 mug.jpg 4",
            "",
            "OfficeHome/RealWorld/pen/0 pen.jpg 5",
        )
        listed = read_list(root / "image_list/r.txt", root, root / "Real World")
        assert listed == [(root / "Real World/mug/0 mug.jpg", 4), (root / "Real World/pen/0 pen.jpg", 5)]

    def test_target_list_without_labels(self, root):
        write_tree(root / "amazon")
        write(root / "Real World", "x.jpg", "y.jpg")
        write_list(root / "image_list/A.txt", *(f"amazon/{c}/0 {c}.jpg {k}" for k, c in enumerate(CLASSES)))
        write_list(root / "image_list/Rw.txt", "Real World/x.jpg -1", "Real World/y.jpg -1")
        found = find(root)
        assert found.class_names == CLASSES
        assert labels(found, "Real World") == {"x.jpg": -1, "y.jpg": -1}

    def test_source_list_without_labels(self, root):
        for domain in ("amazon", "Real World"):
            write_tree(root / domain)
            write_list(
                root / f"image_list/{domain}.txt",
                *(f"{domain}/{c}/0 {c}.jpg {k}" for k, c in enumerate(CLASSES)),
                f"{domain}/mug/1 mug.jpg -1",
            )
        with pytest.raises(ValueError, match="images of the source domain amazon have no label"):
            find(root)

    def test_class_numbers_that_only_one_list_has(self, root):
        write(root, *(f"{code}/{n}.jpg" for code in ("amazon", "Real World") for n in range(4)))
        write_list(root / "image_list/amazon.txt", *(f"amazon/{n}.jpg {n % 2}" for n in range(4)))
        write_list(root / "image_list/Real World.txt", *(f"Real World/{n}.jpg {n % 3}" for n in range(4)))
        with pytest.raises(ValueError, match="amazon and Real World differ: 2 only in Real World"):
            find(root)

    @pytest.mark.parametrize(
        "line", ["amazon/mug/0 mug.jpg", "amazon/mug/0 mug.jpg two", "amazon/mug/0 mug.jpg -2", "7"]
    )
    def test_line_without_a_label(self, root, line):
        write_list(root / "a.txt", "amazon/mug/1 mug.jpg 0", line)
        with pytest.raises(ValueError, match=r"a\.txt, line 2: '.*' is not a path, a space and a label from 0 on"):
            read_list(root / "a.txt", root)

    def test_empty_list(self, root):
        write_list(root / "a.txt", "", " ")
        with pytest.raises(ValueError, match=r"a\.txt: the list is empty"):
            read_list(root / "a.txt", root)

    def test_list_of_images_that_are_not_there(self, root):
        write_list(root / "a.txt", "/data/image-clef/i/n02691156_7563.JPEG 0")
        with pytest.raises(
            FileNotFoundError, match=r"first image /data/image-clef/i/n02691156_7563\.JPEG does not exist"
        ):
            read_list(root / "a.txt", root)


class TestCounts:
    """Trees that are not the data set they are taken for."""

    def write_office31(self, root: Path, counts: dict[str, int]) -> None:
        classes = [f"class_{number:02d}" for number in range(31)]
        for domain, count in counts.items():
            write(root / domain / "images", *(f"{classes[n % 31]}/{n}.jpg" for n in range(count)))

    def test_whole_set_passes_in_silence(self, root, recwarn):
        self.write_office31(root, {"amazon": 2817, "dslr": 498})
        found = find(root, DOMAIN_SETS["office31"], "A", "D", "office31")
        assert [len(files) for files in found.files.values()] == [2817, 498]
        assert not [warning for warning in recwarn if "expected" in str(warning.message)]

    def test_lost_images_are_a_warning(self, root):
        self.write_office31(root, {"amazon": 2817, "dslr": 470})
        with pytest.warns(UserWarning, match=r"office31: dslr has 470 images in .*, where 498 were expected"):
            find(root, DOMAIN_SETS["office31"], "A", "D", "office31")

    def test_another_number_of_classes_is_an_error(self, root):
        for domain in ("amazon", "dslr"):
            write_tree(root / domain)
        with pytest.raises(ValueError, match=r"office31: 3 classes in .*, where 31 were expected: bike, mug, pen"):
            find(root, DOMAIN_SETS["office31"], "A", "D", "office31")

    @pytest.mark.parametrize(
        ("dataset", "counts", "classes"),
        [
            ("office31", [2817, 498, 795], 31),
            ("office_home", [2427, 4365, 4439, 4357], 65),
            ("office_caltech10", [958, 157, 295, 1123], 10),
            ("imageclef", [600, 600, 600, 600], 12),
            ("visda2017", [152397, 55388], 12),
            ("pacs", [2048, 2344, 1670, 3929], 7),
        ],
    )
    def test_registered_counts(self, dataset, counts, classes):
        spec = DOMAIN_SETS[dataset]
        assert [domain.count for domain in spec.domains] == counts
        assert spec.num_classes == classes

    def test_office_caltech_on_disk_has_all_its_images(self, data_root, recwarn):
        spec = DOMAIN_SETS["office_caltech10"]
        found = find_files("office_caltech10", spec, data_root, spec.domains[:3], spec.domains[3])
        assert found.class_names is not None
        assert found.class_names[0] == "backpack"
        assert not [warning for warning in recwarn if "expected" in str(warning.message)]


class TestOwnFolder:
    """Its domains are its folders and list files."""

    def test_domains(self, root):
        write_tree(root / "cam 1")
        write_tree(root / "cam 2")
        write(root, "flat/x.jpg")
        write_list(root / "image_list/cam1_list.txt", "x.jpg 0")
        write_list(root / "image_list/flat_all.txt", "flat/x.jpg 0")
        assert [domain.name for domain in folder_set(root).domains] == ["cam 1", "cam 2", "flat", "flat_all"]
        found = find(root, folder_set(root), "cam_1", "cam 2", "folder")
        assert found.class_names == CLASSES
