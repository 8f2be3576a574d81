"""Reading compiled programs: on a small module whose sums are known by hand, and on real ones."""

import jax
import numpy as np
import pytest

from llama_nb import hlo

MODULE = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %x = bf16[8,128]{1,0} fusion(%state), kind=kLoop, backend_config={"estimated_cycles":"100"}
  ROOT %r = bf16[8,128]{1,0} all-reduce(%x), to_apply=%add, backend_config={"estimated_cycles":7}
}

%condition (state: (s32[], bf16[8,128])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: s8[4,256]) -> bf16[8,128] {
  %p = s8[4,256]{1,0} parameter(0)
  %wide = bf16[4,256]{1,0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"1000"}
  %k = f32[4,2]{1,0} custom-call(%p, %wide), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[4,256]{1,0}, bf16[4,256]{1,0}}, custom_call_has_side_effect=false
  %g = (bf16[4,256], bf16[8,256]) all-gather-start(%wide), dimensions={0}
  %done = bf16[8,256]{1,0} all-gather-done(%g)
  %loop = (s32[], bf16[8,128]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %forever = (s32[], bf16[8,128]) while(%t), condition=%condition, body=%body
  %odd = bf16[8,128]{1,0} copy(%loop), backend_config={"estimated_cycles":"18446744073709551615"}
  ROOT %out = bf16[8,128]{1,0} copy(%odd), backend_config={"estimated_cycles":"1"}
}
"""


def test_a_module_by_hand():
    found = hlo.schedule(MODULE)
    assert found.cycles == 1000 + 1 + (5 + 1) * 107
    assert found.collectives == {"all-gather": 1, "all-reduce": 6}
    assert found.collective_bytes == {
        "all-gather": 2 * 8 * 256,
        "all-reduce": 6 * 2 * 8 * 128,
    }
    assert (found.kernels, found.kernel_bytes) == (1, 4 * 256 + 2 * 4 * 256 + 4 * 4 * 2)
    assert found.unbounded == 1
    assert found.seconds(1.5e9, 819e9) == pytest.approx(1643 / 1.5e9 + 3104 / 819e9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[2,4]{1,0}", 16),
        ("(s8[3]{0}, f32[])", 7),
        ("s4[8]", 4),
        ("pred[5]", 5),
        ("f8e4m3fn[2,2]", 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(text, size):
    assert hlo.shape_bytes(text) == size


def test_no_module():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.schedule("hello")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%add", [[0, 2], [1, 3]]),
        ("replica_groups={}, to_apply=%add", []),
        ("replica_groups=[2,4]<=[8], to_apply=%add", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x=1", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x=1", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}, x=1", [[0, 2, 1, 3]]),
        (
            "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, x=1",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_in_every_notation(text, expected):
    assert hlo.groups(hlo.Instruction("x", "all-reduce", "f32[2]", text)) == expected


def test_groups_of_a_notation_that_is_new():
    with pytest.raises(ValueError, match="no groups are known of this instruction: all-reduce"):
        hlo.groups(hlo.Instruction("x", "all-reduce", "f32[2]", "replica_groups=new(2), x=1"))


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_groups_of_a_compiled_program(axis):
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip("needs four devices")
    mesh = jax.sharding.Mesh(np.reshape(devices[:4], (2, 2)), ("rows", "columns"))
    spec, out = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    add = jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, axis), mesh=mesh, in_specs=spec, out_specs=out)
    )
    text = add.lower(np.ones(4, np.float32)).compile().as_text()
    (found,) = [hlo.groups(step) for step, _, _ in hlo.executed(text) if step.collective]
    assert found == {"rows": [[0, 2], [1, 3]], "columns": [[0, 1], [2, 3]]}[axis]
