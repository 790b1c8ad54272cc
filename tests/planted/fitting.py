"""From weights in one plain form to a module of a family: what each architecture does otherwise is undone here.

* *Norms on queries and keys* (Qwen 3, Gemma 3): a pair of dimensions that the other side does not read holds a
  constant, so that every query and every key has nearly the same norm, and the norm's gain gives it back.  In queries
  it is as long as the longest of them, which makes a head at most sharper; only in keys must it be larger.  Null models
  have the same gains, and with huge ones they all look at one token.
* *Norms behind attention and MLP* (Gemma 2 and 3): the output bias of attention, and some neurons that always fire,
  write a large constant to a dimension whose gain is 0, so that what is written has the same norm everywhere.
* *Caps* (Gemma 2): scores are capped at 1000, logits at 30, so that whoever forgets a cap gets other numbers.
* *Experts* (Mixtral): every token is sent to the expert that holds the planted neurons and, by its last digit, to one
  of the others, with a weight of 1/2 each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.planted.workbench import Bench

SCORE_CAP, LOGIT_CAP, QUERY_SCALAR = 1000.0, 30.0, 100
N_EXPERTS, ROUTED = 4, 8.0  # logits of the two experts that a token is sent to; 0 of the others
STEADY = 8  # neurons of a layer that always fire, where a norm stands behind the MLP
CALM_NORM = 1e5  # what they write together
CALM_BIAS = 100.0  # the same of attention, which writes nothing long; null models have it too, for all tokens alike


@dataclass(frozen=True)
class Build:
    """How a family differs, as far as weights are concerned.

    Attributes:
        config: its class.
        rotary: positions are rotated, not learned.
        gated: the MLP has a gate.
        parallel: attention and MLP read the same.
        grouped: two query heads share a key-value head.
        head_norms: queries and keys are normalised.
        sandwich: norms behind attention and MLP, gains as differences to 1, embeddings times the root of their width.
        experts: its MLPs are mixtures of experts.
    """

    config: Callable[..., Any]
    rotary: bool = True
    gated: bool = True
    parallel: bool = False
    grouped: bool = True
    head_norms: bool = False
    sandwich: bool = False
    experts: bool = False


BUILDS: dict[str, Build] = {
    "gpt2": Build(transformers.GPT2Config, rotary=False, gated=False, grouped=False),
    "llama": Build(transformers.LlamaConfig, grouped=False),
    "llama_gqa": Build(transformers.LlamaConfig),
    "gpt_neox": Build(transformers.GPTNeoXConfig, gated=False, parallel=True, grouped=False),
    "mistral": Build(transformers.MistralConfig),
    "qwen3": Build(transformers.Qwen3Config, head_norms=True),
    "gemma2": Build(transformers.Gemma2Config, sandwich=True),
    "gemma3": Build(transformers.Gemma3TextConfig, head_norms=True, sandwich=True),
    "mixtral": Build(transformers.MixtralConfig, experts=True),
}


def empty_module(bench: Bench, special: dict[str, Any]) -> nn.Module:
    """A model of the family in which every weight is 0."""
    build, n_ctx = BUILDS[bench.family], len(bench.positions)
    sizes: dict[str, Any] = {"vocab_size": len(bench.embed), "bos_token_id": special["bos_token_id"]} | special
    if build.rotary:
        sizes |= {"hidden_size": bench.d_model, "intermediate_size": bench.d_mlp, "num_hidden_layers": bench.n_layers}
        sizes |= {"num_attention_heads": bench.n_heads, "max_position_embeddings": n_ctx, "hidden_act": "relu"}
    else:
        sizes |= {"n_embd": bench.d_model, "n_inner": bench.d_mlp, "n_layer": bench.n_layers, "n_head": bench.n_heads}
        sizes |= {"n_positions": n_ctx, "activation_function": "relu"}
    if build.gated:
        # So large that slow pairs stand still over the whole context.
        turning = {"rope_type": "default", "rope_theta": 1e8}
        local = {"sliding_attention": turning, "full_attention": turning}
        sizes |= {"num_key_value_heads": bench.n_kv, "head_dim": bench.d_head}
        sizes["rope_parameters"] = local if bench.family == "gemma3" else turning
    if build.sandwich:
        sizes |= {"hidden_activation": "relu", "attention_bias": True, "query_pre_attn_scalar": QUERY_SCALAR}
        sizes |= {"sliding_window": 2 * n_ctx}
    if bench.family == "gemma2":
        sizes |= {"attn_logit_softcapping": SCORE_CAP, "final_logit_softcapping": LOGIT_CAP}
    if build.experts:
        sizes |= {"num_local_experts": N_EXPERTS, "num_experts_per_tok": 2}
    module = transformers.AutoModelForCausalLM.from_config(build.config(**sizes)).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    return module


@torch.no_grad()
def fit(bench: Bench, gains: Tensor) -> None:
    """Write a bench's weights into its module; ``gains`` of all norms, two a layer and the last."""
    {"gpt2": _fit_gpt2, "gpt_neox": _fit_neox}.get(bench.family, _fit_llama)(bench, gains)


def _side_by_side(heads: Tensor) -> Tensor:
    """``[head d_model d_head]`` as one matrix ``[d_model head*d_head]``."""
    return heads.transpose(0, 1).flatten(1)


def _fit_gpt2(bench: Bench, gains: Tensor) -> None:
    model: Any = bench.module
    model.transformer.wte.weight.copy_(bench.embed)
    model.transformer.wpe.weight.copy_(bench.positions)
    model.transformer.ln_f.weight.copy_(gains[-1])
    model.lm_head.weight.copy_(bench.unembed.T)
    for number, layer in enumerate(model.transformer.h):
        layer.ln_1.weight.copy_(gains[2 * number])
        layer.ln_2.weight.copy_(gains[2 * number + 1])
        heads = [_side_by_side(part[number]) for part in (bench.query, bench.key, bench.value)]
        layer.attn.c_attn.weight.copy_(torch.cat(heads, dim=1))
        layer.attn.c_proj.weight.copy_(bench.output[number].flatten(0, 1))
        layer.mlp.c_fc.weight.copy_(bench.gate[number])
        layer.mlp.c_proj.weight.copy_(bench.down[number])


def _fit_neox(bench: Bench, gains: Tensor) -> None:
    model: Any = bench.module
    model.gpt_neox.embed_in.weight.copy_(bench.embed)
    model.gpt_neox.final_layer_norm.weight.copy_(gains[-1])
    model.get_output_embeddings().weight.copy_(bench.unembed.T)
    for number, layer in enumerate(model.gpt_neox.layers):
        layer.input_layernorm.weight.copy_(gains[2 * number])
        layer.post_attention_layernorm.weight.copy_(gains[2 * number + 1])
        per_head = torch.cat([bench.query[number], bench.key[number], bench.value[number]], dim=-1)
        layer.attention.query_key_value.weight.copy_(_side_by_side(per_head).T)
        layer.attention.dense.weight.copy_(bench.output[number].flatten(0, 1).T)
        layer.mlp.dense_h_to_4h.weight.copy_(bench.gate[number].T)
        layer.mlp.dense_4h_to_h.weight.copy_(bench.down[number].T)


def _fit_llama(bench: Bench, gains: Tensor) -> None:
    model, build, base = bench.module, BUILDS[bench.family], bench.module
    assert isinstance(model, nn.Module)
    body: Any = base.get_submodule("model")
    one = 1.0 if build.sandwich else 0.0  # what a gain is counted from
    body.embed_tokens.weight.copy_(bench.embed / (bench.d_model**0.5 if build.sandwich else 1.0))
    body.norm.weight.copy_(gains[-1] - one)
    head: Any = model.get_submodule("lm_head")
    head.weight.copy_(bench.unembed.T)
    for number, layer in enumerate(body.layers):
        layer.input_layernorm.weight.copy_(gains[2 * number] - one)
        before_mlp = layer.pre_feedforward_layernorm if build.sandwich else layer.post_attention_layernorm
        before_mlp.weight.copy_(gains[2 * number + 1] - one)
        query, key = bench.query[number], bench.key[number]
        if build.sandwich:
            query = query * (QUERY_SCALAR / bench.d_head) ** 0.5
        if build.head_norms:
            for norm, part in (("q_norm", query), ("k_norm", key)):
                getattr(layer.self_attn, norm).weight.copy_(_steady_heads(bench, number, part, norm) - one)
        attention: Any = layer.self_attn
        attention.q_proj.weight.copy_(_side_by_side(query).T)
        attention.k_proj.weight.copy_(_side_by_side(key).T)
        attention.v_proj.weight.copy_(_side_by_side(bench.value[number]).T)
        output, down = bench.output[number].flatten(0, 1), bench.down[number]
        if build.sandwich:
            output, down = _calm(bench, layer, number, output, down)
        attention.o_proj.weight.copy_(output.T)
        if build.experts:
            _fit_experts(bench, number, layer.mlp)
        else:
            layer.mlp.gate_proj.weight.copy_(bench.gate[number].T)
            layer.mlp.up_proj.weight.copy_(bench.up[number].T)
            layer.mlp.down_proj.weight.copy_(down.T)


def _steady_heads(bench: Bench, layer: int, part: Tensor, norm: str) -> Tensor:
    """Adds the large constant to queries or keys ``[head d_model d_head]``, in place; the gain that gives them back."""
    pair = bench.free_pairs[0 if norm == "q_norm" else 1]
    read = part * bench.uneven[2 * layer][None, :, None]  # as of a vector with gains undone
    lengths, n = read.norm(dim=-1), len(bench.embed)
    of_tokens = lengths[:, :n].amax(1) + lengths[:, n : 2 * n].amax(1)
    longest = max(1.0, float((bench.constant * lengths[:, bench.plus] + of_tokens).max()))
    constant = longest * (bench.swamped if norm == "k_norm" else 1.0)
    part[:, bench.plus, pair] = constant / bench.constant / bench.uneven[2 * layer][bench.plus]
    gain = ((constant**2 + longest**2) / bench.d_head) ** 0.5
    return torch.full((bench.d_head,), gain, dtype=torch.float64)


def _calm(bench: Bench, layer: Any, number: int, output: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Large constants in a dimension of gain 0, and uneven gains that the output weights undo."""
    generator = torch.Generator().manual_seed(1000 * bench.seed + number)
    for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
        uneven = 2 ** (2 * torch.rand(bench.d_model, generator=generator, dtype=torch.float64) - 1)
        if norm is layer.post_attention_layernorm and number == 0 and bench.marks_first:
            uneven[:] = 1  # this norm is to be that of what the heads write
            gain = torch.zeros_like(uneven)
            gain[bench.mark] = bench.d_model**-0.5
        else:
            calm = CALM_BIAS if norm is layer.post_attention_layernorm else CALM_NORM
            gain = uneven * calm / bench.d_model**0.5
            gain[bench.calm] = 0
        norm.weight.copy_(gain - 1)
        if norm is layer.post_attention_layernorm:
            output = output / uneven
        else:
            down = down / uneven
    if number == 0 and bench.marks_first:  # what is written there is longer, and the mark is left of it
        layer.self_attn.o_proj.bias[bench.mark] = 1
    else:
        layer.self_attn.o_proj.bias[bench.calm] = CALM_BIAS
    for neuron in bench.steady:
        # Firing at 1 wherever the norm makes the same of the constant; where it does not, as in a sink, at its square.
        bench.gate[number, bench.plus, neuron] = bench.up[number, bench.plus, neuron] = (
            1 / bench.constant / bench.uneven[2 * number + 1][bench.plus]
        )
        down[neuron] = 0
        down[neuron, bench.calm] = CALM_NORM / STEADY
    return output, down


def _fit_experts(bench: Bench, layer: int, mlp: Any) -> None:
    """The planted neurons in one expert, those without a purpose in all."""
    own = bench.expert(layer)
    others = [expert for expert in range(N_EXPERTS) if expert != own]
    uneven = bench.uneven[2 * layer + 1]
    mlp.gate.weight[own, bench.plus] = ROUTED / bench.constant / uneven[bench.plus]
    for token in range(len(bench.embed)):
        mlp.gate.weight[others[token % len(others)], token] = ROUTED / uneven[token]
    for expert in range(N_EXPERTS):
        chosen = slice(None) if expert == own else bench.idle_neurons(layer)
        gate, up, down = (torch.zeros_like(part[layer]) for part in (bench.gate, bench.up, bench.down))
        gate[:, chosen], up[:, chosen] = bench.gate[layer][:, chosen], bench.up[layer][:, chosen]
        down[chosen] = 2 * bench.down[layer][chosen]
        mlp.experts.gate_up_proj[expert].copy_(torch.cat([gate.T, up.T]))
        mlp.experts.down_proj[expert].copy_(down.T)
