"""What chips can do, as their makers say or as measured here."""

import math

from llama_nb import hardware, roofline


def test_chips_say_where_their_numbers_are_from():
    for name, chip in hardware.CHIPS.items():
        assert chip.name == name
        assert chip.source.startswith("https://")
        assert 100 < chip.ridge < 700


def test_measure_finds_sensible_numbers():
    machine = hardware.measure(repeats=1)
    assert 1e8 < machine.bandwidth < 1e13
    assert 1e9 < machine.flops < 1e16
    assert machine.capacity > 1e8 or math.isnan(machine.capacity)
    assert "measured" in machine.source


class Device:
    def __init__(self, kind, stats=None):
        self.device_kind, self._stats = kind, stats

    def memory_stats(self):
        return self._stats


def test_memory_is_what_the_allocator_may_take_else_what_the_maker_says():
    assert hardware.memory_bytes(Device("TPU v5 lite", {"bytes_limit": 5})) == 5
    assert hardware.memory_bytes(Device("TPU v5 lite")) == hardware.CHIPS["TPU v5e"].capacity


def test_chapters_find_it_beside_the_roofline():
    for name in ("CHIPS", "Chip", "best_seconds", "here", "measure"):
        assert getattr(roofline, name) is getattr(hardware, name)
