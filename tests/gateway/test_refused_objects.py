"""What a whole gateway does with an image that it cannot de-identify: kept, shown in quarantine, judged by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from photographs import drawn_jpeg, op_dataset, write
from running import running_gateway, storescu, wait_until

CONFIG = """
[worker]
count = 1
threads = 1

[completion]
single_image_quiet_time_s = 0.5

[[rules]]
name = "everything"
models = ["retinopathy"]
"""


@pytest.mark.slow
def test_an_attribute_that_no_standard_has_sends_the_image_to_quarantine(tmp_path: Path) -> None:
    made = op_dataset(drawn_jpeg(2))
    made.add_new(0x00184AB0, "LO", "Doe^Jane")
    file = write(made, tmp_path / "refused.dcm")
    with running_gateway(tmp_path / "gateway", CONFIG) as gateway:
        assert storescu([file], gateway.dicom_port).returncode == 0

        def ended() -> dict[str, Any] | None:
            (study,) = gateway.studies() or [{"state": ""}]
            return study if study["state"] in {"judged", "failed"} else None

        study = wait_until(ended, "the study to end")
        assert study["state"] == "failed"
        assert study["predictions"] == []
        assert "(0018,4AB0)" in study["reason"]
        (row,) = gateway.get("/api/quarantine")
        assert "(0018,4AB0)" in row["reason"]
        page = gateway.text("/quarantine")
        assert "(0018,4AB0)" in page
        assert "Doe" not in row["reason"] + page + gateway.log()
