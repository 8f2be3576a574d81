"""The decode step of 70B on sixteen v5e chips, and of 8B on one, as the TPU compiler schedules it.

Whole steps, all layers, int8 weights and cache, compiled without a TPU and without options, with
attention by XLA and by the decode kernel; the estimate is `llama_nb.hlo`'s. Beside it the same
estimate for the best-known public example of Llama 3 in JAX, and what its authors measured.

    python benchmarks/pod_decode.py [--save]
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import machine

from llama_nb import aot, presets

# Model, slice, batch, context; the public example's estimate and its published time, ms.
CASES = [
    ("llama3.1-70b", "v5e:4x4", 8, 2048, 7.12, 6.29),
    ("llama3.1-70b", "v5e:4x4", 8, 8192, 9.27, 6.85),
    ("llama3.1-70b", "v5e:4x4", 16, 2048, 8.23, 7.41),
    ("llama3.1-70b", "v5e:4x4", 64, 2048, 14.37, 14.56),
    ("llama3.1-8b", "v5e:1x1", 1, 8192, None, None),
    ("llama3.1-8b", "v5e:1x1", 16, 2048, None, None),
]


def main() -> None:
    """Compile every case, print a line each, and keep them with --save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/pod_decode.json")
    options = parser.parse_args()
    rows = []
    for model, topology, batch, context, public, published in CASES:
        config = presets.get(model)
        asked = {"phase": "decode", "batch": batch, "context": context, "quant": "int8"}
        kernel, _ = aot.compile_for(topology, config, **asked, attention="pallas")
        report, _ = aot.compile_for(topology, config, **asked, attention="xla")
        rows.append(
            {
                "model": model,
                "topology": topology,
                "batch": batch,
                "context": context,
                "step_ms": report.estimated_step_ms,
                "kernel_step_ms": kernel.estimated_step_ms,
                "floor_ms": report.roofline_ms,
                "argument_gb": round(report.argument_bytes / 1e9, 3),
                "temp_gb": round(report.temp_bytes / 1e9, 3),
                "collectives": report.collectives,
                "tokens_per_s": report.tokens_per_s,
                "public_step_ms": public,
                "public_measured_ms": published,
                "compile_s": report.compile_s,
            }
        )
        beside = f", public example {public} (measured {published})" if public else ""
        print(
            f"{model} {topology} ({batch}, {context}): {report.estimated_step_ms:.3f} ms, with the "
            f"kernel {kernel.estimated_step_ms:.3f}, floor "
            f"{report.roofline_ms:.3f}, {rows[-1]['argument_gb']} GB{beside}, "
            f"compiled in {report.compile_s:.0f} s",
            flush=True,
        )
    if options.save:
        print("kept in", machine.save("pod_decode", {"cases": rows}))


if __name__ == "__main__":
    main()
