"""Why the Hugging Face hub gave no model, and what to do: gated models, tokens, names, the network."""

import os


def remedy(error: BaseException, repository: str) -> str:
    """What to do about an error of `huggingface_hub`."""
    from huggingface_hub import errors, get_token

    address = f"https://huggingface.co/{repository}"
    has_token = get_token() is not None
    log_in = "log in (hf auth login) or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        if not has_token:
            return f"the model is gated: accept its licence at {address}, then {log_in}"
        return (
            f"the model is gated and the token that is set was not let in: accept its licence at {address} as its "
            "owner (some authors answer requests by hand), and give the token the right to read gated repositories"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such branch, tag or commit: see {address}/commits"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        private = "if it is private, give a token that may read it" if has_token else f"if it is private, {log_in}"
        return f"there is no model of this name, or it is private: check the spelling; {private}"
    if status == 401:
        return f"the hub does not know the token that is set: {log_in} anew" if has_token else log_in
    if status == 403:
        return f"the token that is set may not read it: give one with the right to, and see {address}"
    if status == 429:
        return "the hub was asked too often: wait some minutes" + ("" if has_token else f", or {log_in}")
    if isinstance(error, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE"):
        return "HF_HUB_OFFLINE is set and the model is not in the cache: unset it, or give a local folder"
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_of_network(error):
        return (
            "the hub cannot be reached and the model is not in the cache: connect to the network (or set HF_ENDPOINT "
            "to a mirror), or copy the model here and give its folder"
        )
    return "connect to the network, accept the model's licence and log in where it is gated, or give a local folder"


def _is_of_network(error: BaseException) -> bool:
    import httpx

    return isinstance(error, (ConnectionError, TimeoutError, httpx.TransportError))
