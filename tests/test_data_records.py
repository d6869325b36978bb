"""The batches are what they were; tests/data_records.py says how they were recorded."""

import json
import os
from pathlib import Path

import data_records
import numpy as np
import pytest

RECORDS = json.loads(data_records.PATH.read_text(encoding="utf-8"))
GREY_LEVEL = 1.01 / 255 / 0.224  # in normalised values


def compare(found, recorded):
    """The same bytes, or, where another processor rounds otherwise, values a grey level apart."""
    for case, parts in recorded.items():
        assert set(found[case]) == set(parts), case
        for part, record in parts.items():
            if found[case][part]["sha256"] != record["sha256"]:
                np.testing.assert_allclose(
                    found[case][part]["sample"], record["sample"], atol=GREY_LEVEL, err_msg=f"{case}, {part}"
                )


def test_batches_of_made_data_are_what_they_were(tmp_path):
    compare(data_records.made(tmp_path), RECORDS["made"])


def test_batches_of_real_data_are_what_they_were():
    root = Path(os.environ.get("DATA_ROOT", ""))
    if not all((root / name).is_dir() for name in ("mnist", "usps", "pacs", "imagenette160")):
        pytest.skip("DATA_ROOT lacks data sets")
    compare(data_records.real(root), RECORDS["real"])
