"""Lets torchvision's CUDA build, the only one on PyPI, be imported beside a CPU torch. Run, it installs itself.

vLLM needs torchvision for Qwen2.5-VL's processor, and nothing compiled of it. But where its library does not load,
torchvision fails as it describes two of the library's operators. Here these are declared just before, and only then.
A .pth file brings it into every process: vLLM looks at models in children, which a launcher would not reach.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

OPERATORS = "nms", "qnms"


class Finder:
    """Finds nothing: it waits for the import that would fail."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Declare the operators if they are about to be missed."""
        if name == "torchvision._meta_registrations" and not sys.modules["torchvision.extension"]._has_ops():
            import torch

            Finder.library = torch.library.Library("torchvision", "DEF")  # kept: it lasts as long as this object
            for operator in OPERATORS:
                Finder.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    here, there = Path(__file__), Path(sysconfig.get_path("purelib"))
    shutil.copy(here, there)
    (there / f"{here.stem}.pth").write_text(f"import {here.stem}\n")
else:
    sys.meta_path.insert(0, Finder)
