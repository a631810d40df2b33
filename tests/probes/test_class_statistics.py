import torch

from assay.probes.class_statistics import chunks, class_means


def test_means_equal_a_loop_over_classes():
    """A class's mean mixes in other samples, or float32 sums lose digits over many samples."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (5000,), generator=generator)
    features = 1000 + torch.randn(5000, 7, generator=generator)
    expected = torch.stack([features[targets == k].double().mean(dim=0) for k in range(5)])
    torch.testing.assert_close(class_means(features, targets, 5), expected, rtol=1e-13, atol=0, equal_nan=True)


def test_chunks_cover_everything_once_in_order():
    """Rows are lost or doubled where chunks meet, or a row longer than a chunk stops everything."""
    features, targets = torch.arange(70.0).reshape(10, 7), torch.arange(10)
    for elements in (1, 7, 20, 1000):
        parts = list(chunks(features, targets, elements))
        assert torch.equal(torch.cat([h for h, _ in parts]), features)
        assert torch.equal(torch.cat([y for _, y in parts]), targets)
