"""Python's standard library as code, and what packages on this machine say they are.

Command: lmx data build --config=experiments/data/python_and_manuals.py --out=STORE
Cost:    under a minute on 2 CPU cores; nothing is downloaded
Expect:  about 13 MB of code and a description for each installed package
Then:    lmx train --config=experiments/quickstart.py --config.data.path=STORE
"""

import sysconfig

from lmx.curate.config import default_build_config


def get_config(arg: str = ""):
    config = default_build_config()
    config.uses = ("train",)
    config.sources.code = {
        "path": "python_stdlib",
        "origin": "standard library of the running Python",
        "licence": "PSF-2.0",
        "uses": ("train", "commercial", "redistribute"),
    }
    config.sources.manuals = {
        "path": sysconfig.get_path("purelib"),
        "files": "*.dist-info/METADATA",
        "origin": "descriptions of the Python packages that are installed here",
        "licence": "each its package's",
        "uses": ("train",),
    }
    config.masks = ("email",)
    config.repeated_words = 50
    config.vocab_size = 2048
    if arg == "smoke":
        config.sources.code["max_documents"] = 40
        config.sources.manuals["max_documents"] = 20
        config.vocab_size = 384
    return config
