import numpy as np
import pytest
import torch

from tlexport.arithmetic import SIGNIFICANT, arithmetic, prepared, rounded


class Odd(torch.nn.Module):
    """Casts, writes in place, draws constants and attends: what a mode must see through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.mix = torch.nn.Linear(8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.to(torch.float32) / 255
        x = x.permute(0, 3, 1, 2)
        x = torch.relu_(self.conv(x)).flatten(2).transpose(1, 2)
        total = torch.zeros(len(x), 8, dtype=torch.float32)
        total += x.float().mean(1)
        mask = torch.full((x.shape[1],), torch.finfo(torch.float32).min)
        mask[:4] = 0
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return self.mix(total + y.mean(1))


@pytest.fixture
def images() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (4, 9, 9, 3), dtype=np.uint8))


def answer(how: str | None, images: torch.Tensor) -> np.ndarray:
    network = prepared(Odd().eval(), how or "")
    with torch.no_grad(), arithmetic(how):
        return network(images).numpy()


def test_float64_goes_all_the_way(images):
    wide = answer("float64", images)
    assert wide.dtype == np.float64
    single = answer(None, images)
    off = np.linalg.norm(single - wide) / np.linalg.norm(wide)
    assert 1e-9 < off < 1e-6
    assert np.array_equal(wide, answer("float64", images))


@pytest.mark.parametrize(
    ("how", "least", "most"),
    [("fp32", 1e-8, 2e-6), ("fp16", 5e-5, 5e-3), ("bf16", 5e-4, 4e-2), ("int8", 1e-4, 0.2)],
)
def test_each_precision_costs_what_it_costs(images, how, least, most):
    wide = answer("float64", images)
    off = np.linalg.norm(answer(how, images) - wide) / np.linalg.norm(wide)
    assert least < off < most


@pytest.mark.parametrize("how", ["fp16", "bf16"])
def test_values_are_rounded_as_the_format_rounds(how):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[how]
    values = torch.randn(10_000) * 3
    assert torch.equal(rounded(values, SIGNIFICANT[how]), values.to(dtype).float())
    marks = torch.tensor([torch.finfo(torch.float32).min, float("-inf"), float("inf")])
    assert torch.equal(rounded(marks, SIGNIFICANT[how]), marks)
    assert torch.equal(rounded(torch.arange(3), 11), torch.arange(3))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("size", "kernel", "window"),
    [
        ((15, 16), (3, 3), {"padding": 1}),
        ((16, 15), (5, 5), {"stride": 2, "padding": 2}),
        ((9, 10), (3, 3), {"stride": 2, "dilation": 2}),
        ((9, 7), (1, 3), {"stride": (3, 1), "padding": (1, 2), "dilation": (1, 2)}),
        ((30,), (4,), {"stride": 2, "padding": 3}),
        ((30,), (4,), {"padding": "same"}),
        ((5, 6, 7), (3, 1, 2), {"padding": (1, 0, 1)}),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_each_channel_by_itself_is_convolved_as_pytorch_does_it(
    batch, size, kernel, window, biased
):
    torch.manual_seed(0)
    x, weight = torch.randn(*batch, 6, *size), torch.randn(6, 1, *kernel)
    bias = torch.randn(6) if biased else None
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[
        len(size) - 1
    ]
    wide = None if bias is None else bias.double()
    want = convolve(x.double(), weight.double(), wide, groups=6, **window)
    with torch.no_grad(), arithmetic("float64"):
        got = convolve(x, weight, bias, groups=6, **window)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
