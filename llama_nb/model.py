"""The Llama itself: a Flax NNX module tree over the functions of `layers`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llama_nb import compat, layers, packed
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_INIT_STD = 0.02  # GPT-2's, and every Llama's `initializer_range`.


class _Maker:
    """Makes parameters: drawn at random, or only their shapes."""

    def __init__(self, rngs: nnx.Rngs | None, dtype: Any):
        self.rngs, self.dtype = rngs, dtype

    def normal(self, *shape: int, axes: tuple[str, ...]) -> nnx.Param:
        if self.rngs is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, self.dtype), axes=axes)
        drawn = jax.random.normal(self.rngs.params(), shape, self.dtype)
        return nnx.Param(drawn * jnp.asarray(_INIT_STD, self.dtype), axes=axes)

    def ones(self, size: int) -> nnx.Param:
        if self.rngs is None:
            return nnx.Param(jax.ShapeDtypeStruct((size,), self.dtype), axes=("embed",))
        return nnx.Param(jnp.ones((size,), self.dtype), axes=("embed",))


class Attention(nnx.Module):
    """Projections of grouped-query attention; what happens between them is `Block`'s `attend`."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = make.normal(D, N, H, axes=("embed", "heads", "head_dim"))
        self.k_proj = make.normal(D, K, H, axes=("embed", "kv_heads", "head_dim"))
        self.v_proj = make.normal(D, K, H, axes=("embed", "kv_heads", "head_dim"))
        self.o_proj = make.normal(N, H, D, axes=("heads", "head_dim", "embed"))

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend) -> jax.Array:
        """Map (B, T, D) to (B, T, D)."""
        q = layers.rope(layers.dense(x, compat.value(self.q_proj)), cos, sin)  # (B, T, N, H)
        k = layers.rope(layers.dense(x, compat.value(self.k_proj)), cos, sin)  # (B, T, K, H)
        v = layers.dense(x, compat.value(self.v_proj))  # (B, T, K, H)
        return layers.dense(attend(q, k, v), compat.value(self.o_proj), contract=2)


class MLP(nnx.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        D, F = config.embed_dim, config.ffn_dim
        self.gate_proj = make.normal(D, F, axes=("embed", "ffn"))
        self.up_proj = make.normal(D, F, axes=("embed", "ffn"))
        self.down_proj = make.normal(F, D, axes=("ffn", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (B, T, D) to (B, T, D)."""
        gate = layers.dense(x, compat.value(self.gate_proj))
        up = layers.dense(x, compat.value(self.up_proj))
        return layers.dense(layers.swiglu(gate, up), compat.value(self.down_proj))


class Block(nnx.Module):
    """One layer: attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        self.norm_eps = config.norm_eps
        self.attn_norm = make.ones(config.embed_dim)
        self.attn = Attention(config, make)
        self.mlp_norm = make.ones(config.embed_dim)
        self.mlp = MLP(config, make)

    def __call__(
        self,
        x: jax.Array,
        cos: jax.Array,
        sin: jax.Array,
        attend: Attend,
        tp_axis: str | None = None,
    ) -> jax.Array:
        """Map the residual stream (B, T, D) to the next layer's.

        Parameters
        ----------
        cos, sin
            From `layers.rope_angles`.
        attend
            Maps rotated queries (B, T, N, H), keys and values (B, T, K, H) to (B, T, N, H): plain
            attention, attention through a cache, a kernel, or one that keeps notes.
        tp_axis
            Mesh axis over which partial sums are added, inside `jax.shard_map`.
        """

        def add(x, part):
            return x + (part if tp_axis is None else jax.lax.psum(part, tp_axis))

        h = layers.rms_norm(x, compat.value(self.attn_norm), self.norm_eps)
        x = add(x, self.attn(h, cos, sin, attend))
        h = layers.rms_norm(x, compat.value(self.mlp_norm), self.norm_eps)
        return add(x, self.mlp(h))


class Llama(nnx.Module):
    """A Llama of any generation.

    Every parameter carries its logical axes (`param.axes`, names out of vocab, embed, heads,
    kv_heads, head_dim, ffn); what they mean on a mesh is `sharding`'s business. Head and feature
    counts are read off the weights, so a shard of the model runs through the same code.

    Parameters
    ----------
    config
        The shape.
    rngs
        Where random weights come from. None makes parameters that are shapes only
        (`jax.ShapeDtypeStruct`): enough to load into or to compile for, at no memory.
    dtype
        Of every parameter.
    """

    def __init__(
        self, config: LlamaConfig, *, rngs: nnx.Rngs | None = None, dtype: Any = jnp.float32
    ):
        make = _Maker(rngs, dtype)
        self.config = config
        self.embed = make.normal(config.vocab_size, config.embed_dim, axes=("vocab", "embed"))
        self.layers = compat.module_list([Block(config, make) for _ in range(config.num_layers)])
        self.norm = make.ones(config.embed_dim)
        if not config.tied:
            # (V, D) as the embedding, so that one formula serves tied and untied heads.
            self.lm_head = make.normal(config.vocab_size, config.embed_dim, axes=("vocab", "embed"))

    def __call__(self, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Return the logits of every next token, without a cache.

        Parameters
        ----------
        tokens
            Shape (B, T), integers in [0, V).
        positions
            RoPE positions, shape (B, T); by default 0 to T - 1.

        Returns
        -------
        jax.Array
            Shape (B, T, V), float32.
        """
        return self.logits(self.hidden(tokens, positions=positions)[0])

    def hidden(
        self,
        tokens: jax.Array,
        cache: KVCache | None = None,
        *,
        positions: jax.Array | None = None,
        fresh: bool = False,
        tp_axis: str | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the blocks and the last norm.

        Parameters
        ----------
        tokens
            Shape (B, T).
        cache
            The past. The T new keys and values are written after it; `length` is the caller's to
            advance, since of a padded chunk only a part is text. None attends within `tokens`.
        positions
            Without a cache: RoPE positions, shape (B, T).
        fresh
            The cache is known to be empty, so queries need only look at the T new keys.
        tp_axis
            Name of the mesh axis that splits heads and features, inside `jax.shard_map`: partial
            sums are added over it twice a layer.

        Returns
        -------
        tuple
            Hidden states of shape (B, T, D), and the cache with the new keys and values.
        """
        B, T = tokens.shape
        attend_self = cache is None or fresh
        if positions is None:
            whole = jnp.broadcast_to(jnp.arange(T), (B, T))
            positions = whole if cache is None else cache.positions(T)
        cos, sin = self.angles(positions)
        starts = jnp.zeros((B,), jnp.int32) if cache is None else cache.starts
        first = 0 if attend_self else cache.length
        mask = layers.causal_mask(starts, first, T, T if attend_self else cache.capacity)
        x = self.embedded(tokens)
        for index, block in enumerate(self.layers):

            def attend(q, k, v, index=index):
                nonlocal cache
                if cache is not None:
                    cache = cache.write(index, k, v)
                if attend_self:
                    return layers.causal_attention(q, k, v, mask, block=max(128, T // 8))
                return layers.attention(q, *cache.read(index), mask, *cache.scales(index))

            x = block(x, cos, sin, attend, tp_axis)
        return layers.rms_norm(x, compat.value(self.norm), self.config.norm_eps), cache

    def embedded(self, tokens: jax.Array) -> jax.Array:
        """Return the embeddings of tokens (B, T): shape (B, T, D), dtype of the norms."""
        table = compat.value(self.embed)
        if isinstance(table, packed.Packed):
            return packed.take(table, tokens, compat.value(self.norm).dtype)
        return table[tokens]

    def angles(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return this model's `layers.rope_angles` at positions of shape (B, T)."""
        config = self.config
        frequencies = layers.rope_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling
        )
        return layers.rope_angles(positions, frequencies)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return next-token logits, shape (B, T, V) float32, of hidden states (B, T, D)."""
        head = compat.value(self.embed if self.config.tied else self.lm_head)
        return layers.unembed(hidden, head)


def params_of(model: Llama) -> dict[str, Any]:
    """Return the parameters as nested dicts of arrays: what jitted programs take as an argument.

    A plain dict is flattened by C++ at every call; a tree of NNX variables is not.
    """
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_params(config: LlamaConfig, params: dict[str, Any]) -> Llama:
    """Return the model of that shape that holds these parameters (`params_of`'s inverse)."""
    graph, state = nnx.split(Llama(config))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
