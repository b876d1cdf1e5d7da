"""Settings of the labeller, from the environment (``FEDBUS_LABELLER_…``, ``FEDBUS_LABELS_FILE``, ``OPENAI_…``)."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.labeller.errors import ApiKeyMissingError, ApiKeyUnusableError


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedbus" / "labels.sqlite"


class LabellerSettings(BaseSettings):
    """How the labeller works on this machine; what it labels, and by which provider, stands in the run's config."""

    model_config = SettingsConfigDict(env_prefix="FEDBUS_LABELLER_", env_ignore_empty=True, populate_by_name=True)

    cache: Path = Field(default_factory=_default_cache, description="SQLite file of the answers that were paid for")
    labels_file: Path | None = Field(
        default=None, validation_alias="FEDBUS_LABELS_FILE", description="JSON file of the provider 'recorded'"
    )
    max_cost: float | None = Field(default=None, gt=0, description="US dollars that one run may spend")
    attempts: int = Field(default=6, ge=1, le=20, description="tries of one request")
    request_timeout_s: float = Field(default=60.0, gt=0, le=3_600)
    max_backoff_s: float = Field(default=30.0, gt=0, le=3_600, description="longest wait that we choose ourselves")
    match_threshold: float = Field(default=88.0, ge=0, le=100, description="least similarity of a close spelling")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")

    def api_key(self) -> str:
        """The key for the API.

        Raises:
            ApiKeyMissingError: there is none.
            ApiKeyUnusableError: it has characters that no request can carry, and would be tried for ever.
        """
        key = self.openai_api_key.get_secret_value() if self.openai_api_key is not None else ""
        if not key:
            raise ApiKeyMissingError(
                "the labeller 'openai' needs an API key",
                hint="set OPENAI_API_KEY (any text for a local server at OPENAI_BASE_URL), or use --labeller truth",
            )
        if not all("!" <= character <= "~" for character in key):
            raise ApiKeyUnusableError(
                "OPENAI_API_KEY has spaces, line breaks or characters that are not ASCII",
                hint="copy the key again, without quotes and line breaks",
            )
        return key
