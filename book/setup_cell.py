import importlib.util

if importlib.util.find_spec("llama_nb") is None:  # as on Colab: install what is missing, no more
    import os
    import subprocess
    import sys

    source = os.environ.get("LLAMA_NB_SOURCE", "git+https://github.com/llama-nb/llama-nb@main")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)
    importlib.invalidate_caches()
