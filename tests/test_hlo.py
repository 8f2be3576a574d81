"""Reading compiled programs: on a small module whose sums are known by hand, and on real ones."""

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
