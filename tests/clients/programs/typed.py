"""The typed answer that the frameworks' programs ask for: so small that a model that knows no JSON ends it."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

URL = os.environ["GEMLANE_URL"] + "/v1"
MODEL = "gemma-7b-it-lora"


class Place(BaseModel):
    """A place."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["city", "village"]
    size: int = Field(ge=1, le=9)
