"""wav2vec2, HuBERT and WavLM: networks of raw samples."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from tlexport.backbones._speech_network import Speech, clip, first

NORM_EPS = 1e-7
"""Of `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`."""

BLOCK = 256
"""Numbers added up at once; the root of a clip's length is best, and near it serves."""


class Waves(Speech):
    """wav2vec2, HuBERT or WavLM.

    Where the first layer is normalised over time, that is done over the clip's own frames. The
    library does it over the padding too, and advises not to mask these networks at all; what
    comes out here for any clip of any batch is what it gives for that clip alone.
    """

    def __init__(self, network: PreTrainedModel, *, normalise: bool) -> None:
        super().__init__(network)
        self.normalise = normalise
        self.least = receptive_field(network.config)
        positions = self.network.encoder.pos_conv_embed
        if parametrize.is_parametrized(positions.conv, "weight"):
            parametrize.remove_parametrizations(positions.conv, "weight")
        if getattr(positions, "batch_norm", None) is not None:
            positions.batch_norm.__class__ = _NormOfClip
        for module in self.network.modules():
            if isinstance(module, WavLMAttention):
                module.__class__ = _Attention

    def forward(
        self, samples: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the head of `_speech.py`."""
        samples, lengths = clip(samples, attention_mask)
        lengths = lengths.clamp(min=self.least)
        samples = functional.pad(samples, (0, self.least - 1))
        if self.normalise:
            samples = _normalised(samples, lengths)
        hidden = samples[:, None]
        config = self.network.config
        for number, layer in enumerate(self.network.feature_extractor.conv_layers):
            kernel, stride = config.conv_kernel[number], config.conv_stride[number]
            lengths = (lengths - kernel).div(stride, rounding_mode="floor") + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, torch.nn.GroupNorm):
                hidden = layer.activation(_group_norm(layer.conv(hidden), norm, lengths))
            else:
                hidden = layer(hidden)
        valid = first(lengths, hidden)
        projected = self.network.feature_projection(hidden.transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        hidden = self._encoded(torch.where(valid[:, :, None], hidden, 0.0), valid)
        return torch.where(valid[:, :, None], hidden, 0.0), valid

    def _encoded(self, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """What the library's encoder does, but for its writing zeros where a mask says so.

        In a graph that becomes NonZero and ScatterND over every number of every frame.
        """
        encoder, config = self.network.encoder, self.network.config
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not config.do_stable_layer_norm:
            hidden = encoder.layer_norm(hidden)
        more: dict[str, Any] = {}
        if config.model_type == "wavlm":
            mask = valid
            more["position_bias"] = None  # the first layer makes it, the others share it
        else:
            closed = torch.finfo(hidden.dtype).min
            mask = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, closed)
            mask = mask[:, None, None]
        for layer in encoder.layers:
            answer = layer(hidden, attention_mask=mask, **more)
            hidden = answer[0] if isinstance(answer, tuple) else answer
            if more:
                more["position_bias"] = answer[1]
        return encoder.layer_norm(hidden) if config.do_stable_layer_norm else hidden


def receptive_field(config: PretrainedConfig) -> int:
    """Samples that the first frame of a network without a window is made of."""
    field, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


def _normalised(samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the first `lengths` samples, and zeros behind them.

    Source: `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`.
    """
    return _standardised(samples[:, None], lengths, NORM_EPS)[:, 0]


def _group_norm(
    hidden: torch.Tensor, norm: torch.nn.GroupNorm, lengths: torch.Tensor
) -> torch.Tensor:
    """GroupNorm of float32 [batch, channels, time], a channel a group, over `lengths` frames."""
    scaled = _standardised(hidden, lengths, norm.eps)
    return scaled * norm.weight[:, None] + norm.bias[:, None]


def _standardised(values: torch.Tensor, lengths: torch.Tensor, eps: float) -> torch.Tensor:
    """Each channel of float32 [batch, channels, time] over its first `lengths`; zeros behind."""
    inside = first(lengths, values)[:, None]
    count = lengths[:, None, None]
    centred = torch.where(inside, values - _total(torch.where(inside, values, 0.0)) / count, 0.0)
    return centred / (_total(centred.square()) / count + eps).sqrt()


def _total(values: torch.Tensor) -> torch.Tensor:
    """Sum over time: float32 [batch, channels, time] -> [batch, channels, 1].

    Block by block: ONNX Runtime adds one number after the other, and a minute of samples would
    lose three digits, enough to see where a clip is silent.
    """
    blocks = functional.avg_pool1d(functional.pad(values, (0, BLOCK - 1)), BLOCK)
    return blocks.sum(dim=2, keepdim=True) * BLOCK


class _NormOfClip(torch.nn.BatchNorm1d):
    """The batch norm some HuBERTs have before their positions; padding stays zero."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [batch, width, frames]; the encoder has put zeros where no clip is."""
        padding = (hidden == 0).all(dim=1, keepdim=True)
        return torch.where(padding, 0.0, super().forward(hidden))


class _Attention(WavLMAttention):
    """WavLM's attention, written out.

    The library's goes through a function that warns of its mask and averages weights nobody reads;
    the fused kernel with this bias cannot be exported (its strides while traced are others).
    """

    def torch_multi_head_self_attention(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        gated_position_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 [batch, frames, width], bias [batch * heads, frames, frames] -> the former."""
        batch, frames, _ = hidden_states.shape
        query, key, value = (
            project(hidden_states).view(batch, frames, self.num_heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.view(batch, self.num_heads, frames, frames)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask[:, None, None], torch.finfo(bias.dtype).min)
        weights = ((query * self.scaling) @ key.transpose(2, 3) + bias).softmax(dim=3)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights
