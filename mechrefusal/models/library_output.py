"""What libraries print by themselves."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*, stderr: bool = True) -> Iterator[None]:
    """Silence what the libraries print: progress bars and notices, and (with `stderr`) all that goes there.

    Exceptions pass.
    """
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    root_level = logging.getLogger().level
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger().setLevel(max(root_level, logging.ERROR))
    try:
        unread = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(contextlib.redirect_stdout(unread))
            if stderr:
                stack.enter_context(contextlib.redirect_stderr(unread))
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger().setLevel(root_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
