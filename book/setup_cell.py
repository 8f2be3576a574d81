import importlib.util

# As on Colab: install what is missing, no more.
if importlib.util.find_spec("llama_nb") is None:
    import os
    import subprocess
    import sys

    project = "git+https://github.com/llama-nb/llama-nb@main"
    source = os.environ.get("LLAMA_NB_SOURCE", project)
    install = [sys.executable, "-m", "pip", "install", "--quiet", source]
    subprocess.run(install, check=True)
    importlib.invalidate_caches()
