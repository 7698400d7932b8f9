"""Each way in which the hub refuses is told with what to do."""

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from mechrefusal import MechrefusalError, models

NAME = "owner/model"


def answered(kind, status: int):
    """An error as the hub's client raises it after an answer."""
    request = httpx.Request("GET", f"https://huggingface.co/api/models/{NAME}")
    return kind(f"{status} of the hub", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "token", "said"),
    [
        (
            answered(errors.GatedRepoError, 401),
            None,
            r"gated: accept its licence at https://.*owner/model, then log in",
        ),
        (answered(errors.GatedRepoError, 403), "hf_x", r"gated and the token that is set was not let in"),
        (answered(errors.RepositoryNotFoundError, 404), None, r"check the spelling; if it is private, log in"),
        (answered(errors.RepositoryNotFoundError, 401), "hf_x", r"give a token that may read it"),
        (answered(errors.RevisionNotFoundError, 404), None, r"no such branch, tag or commit"),
        (answered(errors.HfHubHTTPError, 401), "hf_x", r"does not know the token"),
        (answered(errors.HfHubHTTPError, 401), None, r"set HF_TOKEN"),
        (answered(errors.HfHubHTTPError, 403), "hf_x", r"may not read it"),
        (answered(errors.HfHubHTTPError, 429), None, r"asked too often"),
        (errors.OfflineModeIsEnabled("offline"), None, r"HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("no network"), None, r"cannot be reached and the model is not in the cache"),
        (httpx.ConnectError("no route"), None, r"cannot be reached"),
        (ValueError("whatever"), None, r"connect to the network, accept"),
    ],
)
def test_what_to_do(error, token, said, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(MechrefusalError, match=said) as refusal:
        models.fetch(f"{NAME}@main")
    assert type(error).__name__ in str(refusal.value)
    assert "\n" not in str(refusal.value)
