"""Asking a chat server that speaks OpenAI's protocol: retries, a cache on disk, several requests at a time, a bill."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges.chat_address import checked_url, key_of, masked, masked_in_answer
from mechrefusal.evaluation.judges.chat_answer import Answer, read_completion, retry_after
from mechrefusal.files import sweep, whole_file
from mechrefusal.models import cache_folder
from mechrefusal.progress import bar

_ABOUT_THE_REQUEST = (400, 413, 422)
"""Statuses that say that this one request cannot be answered, such as too long a prompt or a content filter."""


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in whatever currency the bill is to be."""

    per_million_in: float
    per_million_out: float

    def __post_init__(self) -> None:
        if not (self.per_million_in >= 0 and self.per_million_out >= 0):
            raise MechrefusalError(f"prices of tokens cannot be negative, got {self}; give money per million tokens")


@dataclass(frozen=True)
class Cost:
    """What a judge asked of its server since it was made.

    answered: requests that the server answered. cached: requests whose answer was on disk, which cost nothing.
    tokens_in, tokens_out: tokens of the answered requests; `unmetered` of these came without a count and are not in
    the sums. money: in the currency of the prices, for the counted tokens; None without prices.
    """

    answered: int = 0
    cached: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0
    money: float | None = None


@dataclass(eq=False)
class ChatClient:
    """Requests to `<base_url>/chat/completions`. Answers are kept in a cache, one file a request, as they come.

    Args:
        base_url: address up to the version, such as "http://localhost:8000/v1".
        key_variable: environment variable that holds the key; None for a server that wants none.
        cache: folder of answers, one file a request; by default "judgements" in mechrefusal's cache.
        concurrency: requests at a time.
        timeout: seconds that one attempt may take until the server answers.
        retries: attempts after the first, where the server is busy (429), broken (5xx), silent or gone.
        backoff: seconds before the second attempt; doubled before each further one.
        longest_wait: seconds between attempts at most, also where the server asks for more (Retry-After).
        prices: money per million tokens, for `cost`.

    Raises:
        MechrefusalError: an address that is none, an empty environment variable, or no time or request allowed.
    """

    base_url: str
    _: KW_ONLY
    key_variable: str | None = None
    cache: Path | str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_wait: float = 60.0
    prices: Prices | None = None

    def __post_init__(self) -> None:
        self.url = f"{checked_url(self.base_url)}/chat/completions"
        if self.concurrency < 1:
            raise MechrefusalError(
                f"concurrency is {self.concurrency}: at least one request at a time has to be allowed"
            )
        if self.timeout <= 0 or min(self.retries, self.backoff, self.longest_wait) < 0:
            raise MechrefusalError(
                f"timeout {self.timeout}, retries {self.retries}, backoff {self.backoff}, longest_wait "
                f"{self.longest_wait} hold a negative number, or no time for an answer"
            )
        self._key = key_of(self.key_variable)
        self._folder = Path(self.cache) if self.cache is not None else cache_folder() / "judgements"
        self._cost, self._lock = Cost(), Lock()
        sweep(self._folder)

    @property
    def cost(self) -> Cost:
        """What was asked so far."""
        if self.prices is None:
            return self._cost
        spent = self._cost.tokens_in * self.prices.per_million_in
        spent += self._cost.tokens_out * self.prices.per_million_out
        return replace(self._cost, money=spent / 1e6)

    def ask(self, bodies: Sequence[Mapping[str, Any]], *, description: str) -> list[Answer]:
        """Answers in the order of the requests; equal requests are asked once.

        Raises:
            MechrefusalError: the server could not be reached, or refused, after all attempts (answers that came by
                then stay in the cache); or it gave no chat completion to any of the requests.
        """
        keys = [self._hash(body) for body in bodies]
        by_key = dict(zip(keys, bodies, strict=True))
        answers = {key: answer for key in by_key if (answer := self._cached(key)) is not None}
        open_keys = [key for key in by_key if key not in answers]
        self._count(cached=len(answers))
        if open_keys:
            answers |= self._ask_server({key: by_key[key] for key in open_keys}, description)
        if answers and all(answer.problem for answer in answers.values()):
            raise MechrefusalError(
                f"'{self.url}' gave no chat completion to any of {len(answers)} requests, the first time: "
                f"{answers[keys[0]].problem}; check base_url, the model's name and the parameters"
            )
        return [answers[key] for key in keys]

    def _ask_server(self, bodies: Mapping[str, Mapping[str, Any]], description: str) -> dict[str, Answer]:
        import requests

        answers: dict[str, Answer] = {}
        stop = Event()
        with (
            requests.Session() as session,
            bar(description, total=len(bodies)) as progress,
            ThreadPoolExecutor(min(self.concurrency, len(bodies))) as pool,
        ):
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=self.concurrency)
            session.mount(f"{urlsplit(self.url).scheme}://", adapter)
            futures = {pool.submit(self._ask_once, session, key, body, stop): key for key, body in bodies.items()}
            try:
                for future in as_completed(futures):
                    answers[futures[future]] = future.result()
                    progress.advance()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return answers

    def _ask_once(self, session, key: str, body: Mapping[str, Any], stop: Event) -> Answer:
        """One request with its attempts; its answer is on disk when this returns."""
        import requests

        failure = ""
        for attempt in range(self.retries + 1):
            requested = None
            try:
                response = session.post(
                    self.url,
                    data=json.dumps(body).encode(),
                    headers={"Content-Type": "application/json"},
                    auth=self._authorise,
                    timeout=self.timeout,
                    allow_redirects=False,
                )
            except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                late = isinstance(error, requests.Timeout) or "timed out" in str(error)
                failure = f"no answer within {self.timeout:g} s" if late else f"no connection ({type(error).__name__})"
            except (requests.RequestException, OSError, ValueError) as error:
                # Its words may hold the key, or the password of a proxy: neither they nor it are shown.
                raise MechrefusalError(
                    f"'{self.url}' cannot be asked ({type(error).__name__}); check base_url, the key and the proxies"
                ) from None
            else:
                status = response.status_code
                if status == 200:
                    return self._taken(key, read_completion(response.content, key=self._key))
                failure = f"status {status}: {' '.join(masked(response.text, self._key).split())[:200]}"
                if status in _ABOUT_THE_REQUEST:
                    return Answer(None, problem=failure)
                if status not in (408, 429) and status < 500:
                    raise MechrefusalError(f"'{self.url}' answered with {failure}; {self._remedy(status)}")
                requested = retry_after(response.headers.get("Retry-After"))
            if attempt < self.retries and stop.wait(self._pause(attempt, requested)):
                break
        raise MechrefusalError(
            f"'{self.url}' did not answer in {self.retries + 1} attempts, the last time: {failure}; "
            f"start it, or wait and run again: the answers that came are kept in '{self._folder}'"
        )

    def _taken(self, key: str, answer: Answer) -> Answer:
        """Count an answer, and keep it if it is one."""
        metered = answer.tokens_in is not None and answer.tokens_out is not None
        if answer.problem:
            return answer
        text, reason = (masked_in_answer(each, self._key) for each in (answer.text, answer.finish_reason))
        answer = replace(answer, text=text, finish_reason=reason or "")
        self._count(
            answered=1,
            tokens_in=answer.tokens_in or 0,
            tokens_out=answer.tokens_out or 0,
            unmetered=int(not metered),
        )
        with whole_file(self._path(key)) as draft:
            draft.write_text(json.dumps(asdict(answer)), encoding="utf-8")
        return answer

    def _cached(self, key: str) -> Answer | None:
        try:
            return Answer(**json.loads(self._path(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # not there, or damaged: it is asked again

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _hash(self, body: Mapping[str, Any]) -> str:
        """The sha256 of the request: where it goes and all that it says, but for the key."""
        return hashlib.sha256(json.dumps({"url": self.url, "body": body}, sort_keys=True).encode()).hexdigest()

    def _count(self, **more: int) -> None:
        with self._lock:
            self._cost = replace(self._cost, **{name: getattr(self._cost, name) + n for name, n in more.items()})

    def _authorise(self, request):
        """Set the key; given even without one, as requests would look for another in a netrc file."""
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _pause(self, attempt: int, requested: float | None) -> float:
        """Seconds until the next attempt; spread a little, so that parallel requests do not come back together."""
        wait = self.backoff * 2**attempt if requested is None else requested
        return min(self.longest_wait, wait * random.uniform(1, 1.25))

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            if self.key_variable is None:
                return "it wants a key: name the environment variable that holds it with key_variable="
            return f"check the key in the environment variable {self.key_variable}, and what it may use"
        if 300 <= status < 400:
            return "it sends elsewhere: give the address that it names as base_url"
        return "check base_url and the model's name"
