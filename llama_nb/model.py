"""The Llama itself: a Flax NNX module tree over the functions of `layers`."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from llama_nb import attending, compat, layers, packed
from llama_nb.cache import KVCache
from llama_nb.config import LlamaConfig

if TYPE_CHECKING:
    from llama_nb.kernels import Choice
    from llama_nb.sharding import Layout

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Dense = Callable[..., jax.Array]

_STREAM = ("batch", None, "stream")  # the logical axes of (B, T, D)
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

    def __call__(
        self,
        x: jax.Array,
        cos: jax.Array,
        sin: jax.Array,
        attend: Attend,
        dense: Dense = layers.dense,
    ) -> jax.Array:
        """Map (B, T, D) to (B, T, D)."""
        q = layers.rope(dense(x, compat.value(self.q_proj)), cos, sin)  # (B, T, N, H)
        k = layers.rope(dense(x, compat.value(self.k_proj)), cos, sin)  # (B, T, K, H)
        v = dense(x, compat.value(self.v_proj))  # (B, T, K, H)
        return dense(attend(q, k, v), compat.value(self.o_proj), contract=2)


class MLP(nnx.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: LlamaConfig, make: _Maker):
        D, F = config.embed_dim, config.ffn_dim
        self.gate_proj = make.normal(D, F, axes=("embed", "ffn"))
        self.up_proj = make.normal(D, F, axes=("embed", "ffn"))
        self.down_proj = make.normal(F, D, axes=("ffn", "embed"))

    def __call__(self, x: jax.Array, dense: Dense = layers.dense) -> jax.Array:
        """Map (B, T, D) to (B, T, D)."""
        gate = dense(x, compat.value(self.gate_proj))
        up = dense(x, compat.value(self.up_proj))
        return dense(layers.swiglu(gate, up), compat.value(self.down_proj))


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
        join: Callable[[jax.Array], jax.Array] = lambda part: part,
        dense: Dense = layers.dense,
    ) -> jax.Array:
        """Map the residual stream (B, T, D) to the next layer's.

        Parameters
        ----------
        cos, sin
            From `layers.rope_angles`.
        attend
            Maps rotated queries (B, T, N, H), keys and values (B, T, K, H) to (B, T, N, H): plain
            attention, attention through a cache, a kernel, or one that keeps notes.
        join
            What devices do with the outputs of attention and of the feed-forward layer before they
            are added to the stream: sums over the devices where each has a part of the heads.
        dense
            How to multiply with a matrix: `layers.dense`, or with a kernel for its `product`.
        """
        h = layers.rms_norm(x, compat.value(self.attn_norm), self.norm_eps)
        x = x + join(self.attn(h, cos, sin, attend, dense))
        h = layers.rms_norm(x, compat.value(self.mlp_norm), self.norm_eps)
        return x + join(self.mlp(h, dense))


class Llama(nnx.Module):
    """A Llama of any generation.

    Every parameter carries its logical axes (`param.axes`, names out of vocab, embed, heads,
    kv_heads, head_dim, ffn); what they mean on a mesh is `sharding`'s business. Head and feature
    counts are read off the weights, so a shard of the model runs through the same code.

    `layout` is None, or says how the parameters lie on a mesh (`sharding.Layout`).
    `attention_impl` is "auto", "xla" or "pallas": what a `Session` will use. In a program it is
    what that means there (`kernels.Choice`).

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
        self.layout: Layout | None = None
        self.attention_impl: Choice | str = "auto"
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
        length: jax.Array | None = None,
        tp_axis: str | tuple[str, ...] | None = None,
        segments: jax.Array | None = None,
        remat: bool = False,
        policy: Callable[..., bool] | None = None,
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
        length
            With `fresh`: columns of `tokens` in use, if not all. A kernel leaves out the rest.
        tp_axis
            Inside `jax.shard_map`: the mesh axes that split heads, features and vocabulary.
            Partial sums are added over them twice a layer, and once for the embedding.
        segments
            Without a cache: which document of its row each token is of, shape (B, T); documents
            don't see each other.
        remat
            Without a cache: keep only the stream between the layers for the backward pass, and
            compute the rest again.
        policy
            What else is kept then, as in `jax.checkpoint`.

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
        if segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None])
        x = self.embedded(tokens, tp_axis)
        product = attending.product(self.attention_impl, self.layout, B * T)
        dense = functools.partial(layers.dense, product=product)
        kernel = None
        if cache is not None and (fresh or T == 1):
            end = cache.length + 1 if not fresh else T if length is None else length
            kernel = attending.kernel(self.attention_impl, self.layout, fresh=fresh, end=end)

        def join(part):
            if tp_axis is not None:
                return jax.lax.psum(part, tp_axis)
            return part if self.layout is None else self.layout.place(part, *_STREAM)

        for index, block in enumerate(self.layers):

            def attend(q, k, v, index=index):
                nonlocal cache
                if cache is not None:
                    cache = cache.write(index, k, v)
                if kernel is not None:
                    return kernel(cache, index, q, k, v)
                if attend_self:
                    # Eight blocks skip nearly half of the work, and take long to differentiate.
                    block = T if remat else max(64, T // 8)
                    return layers.causal_attention(q, k, v, mask, block)
                return layers.attention(q, *cache.read(index), mask, *cache.scales(index))

            run = functools.partial(block, cos=cos, sin=sin, attend=attend, join=join, dense=dense)
            x = (jax.checkpoint(run, policy=policy) if remat else run)(x)
        return layers.rms_norm(x, compat.value(self.norm), self.config.norm_eps), cache

    def embedded(
        self, tokens: jax.Array, tp_axis: str | tuple[str, ...] | None = None
    ) -> jax.Array:
        """Return the embeddings of tokens (B, T): shape (B, T, D), dtype of the norms.

        With `tp_axis` each device looks up the tokens whose rows it has, and all add up.
        """
        table = compat.value(self.embed)
        if tp_axis is not None:
            rows = tokens - jax.lax.axis_index(tp_axis) * table.shape[0]
            mine = (rows >= 0) & (rows < table.shape[0])
            x = self._rows(table, jnp.where(mine, rows, 0))
            return jax.lax.psum(jnp.where(mine[..., None], x, 0), tp_axis)
        if self.layout is None:
            return self._rows(table, tokens)
        # Rows are gathered as the stream wants them, rather than sent around afterwards.
        table = jax.tree.map(lambda part: self.layout.place(part, "vocab", "stream"), table)
        return self.layout.place(self._rows(table, tokens), *_STREAM)

    def _rows(self, table: jax.Array | packed.Packed, tokens: jax.Array) -> jax.Array:
        if isinstance(table, packed.Packed):
            return packed.take(table, tokens, compat.value(self.norm).dtype)
        if self.layout is not None and self.layout.explicit:
            shape = (*tokens.shape, table.shape[1])
            return table.at[tokens].get(out_sharding=self.layout.sharding(shape, _STREAM))
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
        B, T = hidden.shape[:2]
        product = attending.product(self.attention_impl, self.layout, B * T)
        return layers.unembed(hidden, head, product)


def params_of(model: Llama) -> dict[str, Any]:
    """Return the parameters as nested dicts of arrays: what jitted programs take as an argument.

    A plain dict is flattened by C++ at every call; a tree of NNX variables is not.
    """
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_params(
    config: LlamaConfig,
    params: dict[str, Any],
    layout: "Layout | None" = None,
    attention_impl: "Choice | str" = "auto",
) -> Llama:
    """Return the model of that shape that holds these parameters (`params_of`'s inverse).

    Parameters
    ----------
    layout
        How they lie on a mesh; the activations follow.
    attention_impl
        Inside a program a `kernels.Choice`; by name it is for sessions to choose.
    """
    graph, state = nnx.split(Llama(config))
    nnx.replace_by_pure_dict(state, params)
    model = nnx.merge(graph, state)
    model.layout, model.attention_impl = layout, attention_impl
    return model
