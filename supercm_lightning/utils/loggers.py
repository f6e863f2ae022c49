"""How much the loggers of other libraries say."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logger_level(level: int, *names: str) -> Iterator[None]:
    """Sets the level of named loggers, and gives them their own back.

    Examples:
        >>> with logger_level(logging.ERROR, "lightning.pytorch"):
        ...     logging.getLogger("lightning.pytorch").isEnabledFor(logging.WARNING)
        False
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)


@contextmanager
def without_messages(logger: str, text: str) -> Iterator[None]:
    """Leaves out messages of a named logger that hold a text."""

    def others(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logging.getLogger(logger).addFilter(others)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(others)
