"""What is asked: sentences from a file, and which of their words a run knows."""

from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import as_unicode, read_bytes
from pipeline.inputs.captions import LONGEST_CAPTION
from pipeline.inputs.tables import is_table
from pipeline.runs import TrainedRun

LONGEST_QUERIES = 16 << 20  # bytes of --queries
NO_TEXT = {".csv", ".tsv", ".json", ".jsonl"}  # suffixes of what holds more than sentences


def read_queries(path: str) -> list[str]:
    """The sentences of --queries, one a line; "": none.

    Raises:
        PipelineError: not a text file of sentences.
    """
    if not path:
        return []
    what = "a text file, one sentence a line"
    content = read_bytes(Path(path), what, limit=LONGEST_QUERIES)
    try:
        text = as_unicode(content)
    except ValueError as error:
        raise PipelineError(f"--queries {path}: not readable as {what} ({error})", "write it as UTF-8") from error
    if Path(path).suffix.lower() in NO_TEXT or text.lstrip().startswith(("{", "[")) or is_table(text):
        tab = text[: text.find("\t")].count("\n") + 1 if "\t" in text else 0
        raise PipelineError(
            f"--queries {path}{f', line {tab}' if tab else ''}: a table, a list or JSON, expected {what}",
            "write the sentences alone to a .txt",
        )
    # Not splitlines: a sentence may hold other separators. Files that were joined have several byte order marks
    lines = text.replace("\r", "\n").replace("\ufeff", "").split("\n")
    return [line.strip() for line in lines if line.strip()]


def known_words(run: TrainedRun, query: str) -> dict[str, str]:
    """The words of a query that the run does not know, each with the nearest that it does, or "".

    Raises:
        PipelineError: it knows none of them, or reads no sentence as long; or the query is no text, or a book.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise PipelineError(f"{query!r}: not readable as text", "ask in UTF-8")
    if len(query) > LONGEST_CAPTION:  # minutes and gigabytes, and no sentence
        raise PipelineError(f"{query[:40]!r}…: {len(query):,} characters; expected at most {LONGEST_CAPTION:,}")
    if run.model.vocabulary.is_cut(query):
        raise PipelineError(f"{query[:40]!r}…: longer than the run {run.name} reads", "ask with a shorter sentence")
    unknown = run.model.vocabulary.unknown(query)
    if not run.model.vocabulary.known(query):
        if not unknown:
            raise PipelineError(f"{query!r}: no word in it", 'ask with a sentence, such as "two dogs play by a tree"')
        nearest = ", ".join(near for near in unknown.values() if near)
        raise PipelineError(
            f"{query!r}: the run {run.name} knows none of these words",
            f"nearest known: {nearest}" if nearest else "ask in other words",
        )
    return unknown
