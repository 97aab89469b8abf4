"""One JSON of all that was measured on a CUDA device, a section for each script."""

import json
from pathlib import Path
from typing import Any

import torch

from harness.benchmark import RESULTS as FOLDER
from harness.benchmark import write
from harness.machine import machine

RESULTS = FOLDER / "cuda.json"


def section(device: torch.device) -> dict[str, Any]:
    """What a section begins with: where and with what it is measured."""
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "cells": {}}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def keep(name: str, found: dict[str, Any], path: Path = RESULTS) -> None:
    """Write a section, and leave the others as they are."""
    everything = json.loads(path.read_text()) if path.exists() else {}
    write(path, {**everything, name: found})
