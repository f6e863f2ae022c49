"""Global contrast normalisation and ZCA, compared with slow restatements in numpy."""

import numpy as np
import torch

from supercm_lightning.data import SemiSupervisedDataModule
from supercm_lightning.data.transforms.zca import ZCA, global_contrast_normalize


def images(n=300) -> torch.Tensor:
    """Neighbouring pixels resemble each other, as in photographs."""
    stream = np.random.default_rng(0)
    rough = stream.integers(0, 256, (n, 2, 5, 5))
    smooth = (rough[:, :, :-1, :-1] + rough[:, :, 1:, :-1] + rough[:, :, :-1, 1:] + rough[:, :, 1:, 1:]) // 4
    return torch.from_numpy(smooth.astype(np.uint8))


def test_contrast_normalisation_equals_the_restatement():
    for image, result in zip(images(20).numpy(), global_contrast_normalize(images(20)).numpy(), strict=True):
        centred = image.astype(np.float64) - image.mean()
        np.testing.assert_allclose(result, 55 * centred / np.sqrt((centred**2).sum()), rtol=1e-4, atol=1e-4)


def test_image_of_one_value_becomes_zero():
    # 0.1 is not exact in floats: what rounding leaves must not be blown up.
    grey = torch.full((2, 3, 57, 61), 77.1)
    grey[1] = 200
    assert torch.equal(global_contrast_normalize(grey), torch.zeros(2, 3, 57, 61))
    assert torch.equal(global_contrast_normalize(grey.byte()), torch.zeros(2, 3, 57, 61))


def test_whitening_equals_the_restatement():
    rows = global_contrast_normalize(images())
    flat = rows.flatten(1).numpy().astype(np.float64)
    covariance = np.cov(flat, rowvar=False, bias=True)
    u, s, _ = np.linalg.svd(covariance + 0.1 * np.eye(len(covariance)))
    expected = (flat - flat.mean(0)) @ (u @ np.diag(1 / np.sqrt(s)) @ u.T)
    np.testing.assert_allclose(ZCA.fit(rows)(rows).flatten(1).numpy(), expected, atol=2e-3)


def test_whitened_covariance_is_the_regularised_identity():
    rows = global_contrast_normalize(images(3000))
    whitened = ZCA.fit(rows)(rows).flatten(1).numpy().astype(np.float64)
    eigenvalues, vectors = np.linalg.eigh(np.cov(rows.flatten(1).numpy().astype(np.float64), rowvar=False, bias=True))
    expected = vectors @ np.diag(eigenvalues / (eigenvalues + 0.1)) @ vectors.T
    np.testing.assert_allclose(np.cov(whitened, rowvar=False, bias=True), expected, atol=2e-3)


def test_fit_in_parts_equals_fit_at_once():
    rows = torch.randn(12_000, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    flat = rows.flatten(1).numpy().astype(np.float64)
    eigenvalues, vectors = np.linalg.eigh(np.cov(flat, rowvar=False, bias=True) + 0.1 * np.eye(9))
    np.testing.assert_allclose(
        ZCA.fit(rows).matrix.numpy(), vectors @ np.diag(eigenvalues**-0.5) @ vectors.T, atol=1e-6
    )


def test_module_whitens_all_parts_by_the_training_images(gather):
    data = SemiSupervisedDataModule("digits", num_labeled=20, whitening=True)
    plain = SemiSupervisedDataModule("digits", num_labeled=20)
    data.setup("fit")
    plain.setup("fit")
    raw = global_contrast_normalize(plain.samples["test"].store.data)
    trained = torch.cat([plain.samples[split].index for split in ("labeled", "unlabeled")]).sort().values
    assert len(trained) == 1797 - 150 - 450  # neither validation nor test images
    expected = ZCA.fit(raw[trained])(raw)[plain.samples["test"].index]
    x, _, _ = gather(data, "test")
    torch.testing.assert_close(x, expected)
