from llama_nb import devices


def test_the_cpu_is_chosen_only_where_nothing_was_said_and_nothing_is_there(monkeypatch):
    for attached, said, expected in (
        (False, None, "cpu"),
        (True, None, None),
        (False, "tpu", "tpu"),
        (True, "cpu", "cpu"),
    ):
        monkeypatch.setattr(devices, "has_accelerator", lambda attached=attached: attached)
        monkeypatch.setattr(devices.sys, "platform", "linux")
        environment = {} if said is None else {"JAX_PLATFORMS": said}
        devices.prefer_cpu_if_alone(environment)
        assert environment.get("JAX_PLATFORMS") == expected


def test_memory_is_the_containers_where_it_has_less(monkeypatch, tmp_path):
    whole = devices.machine_memory()
    assert whole > 2**28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "_LIMITS", (str(tmp_path / "none"), str(limit)))
    for text, expected in (("1048576\n", 2**20), ("max\n", None), (str(2**62), None)):
        limit.write_text(text)
        found = devices.machine_memory()
        assert found == expected if expected else found >= whole
    monkeypatch.setattr(devices.os, "sysconf_names", {})
    assert devices.machine_memory() is None
