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
