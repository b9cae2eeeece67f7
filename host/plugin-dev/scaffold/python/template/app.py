"""@NAME@: the ChatML template. It knows text messages of any role, and neither tools nor reasoning."""

from componentize_py_types import Ok
from trainer_plugin import Err, interface, resource
from wit_world.exports.template import (
    Description,
    OutputPart_Text,
    Piece_Special,
    Piece_Text,
    Rendered,
    Segment,
)
from wit_world.imports.types import Content_Json, Content_Text

START, END = "<|im_start|>", "<|im_end|>"


@interface
class Template:
    def configure(self, settings: str) -> None:
        """Called once in each instance, before anything else."""

    def describe(self) -> Description:
        return Description(stop_tokens=[END], stable_prefixes=True)

    def render_prompts(self, requests):
        """What the model reads before it writes: one answer per request."""
        return [answer(lambda: self.prompt(r.conversation, r.add_generation_prompt)) for r in requests]

    def render_training(self, conversations):
        """What the model learns from: one list of texts per conversation."""
        return [answer(lambda: [self.prompt(c, False)]) for c in conversations]

    def prompt(self, conversation, open_turn: bool) -> Rendered:
        if conversation.tools:
            raise Err("this template knows no tools")
        if not conversation.messages:
            raise Err("the conversation has no messages")
        segments = []
        for index, message in enumerate(conversation.messages):
            segments += turn(index, message)
        if open_turn:
            segments.append(Segment(Piece_Special(START), None, False, 1.0))
            segments.append(Segment(Piece_Text("assistant\n"), None, False, 1.0))
        return Rendered(segments)

    def parse(self, outputs):
        """Whole outputs at once."""
        return [OutputParser(False).push(pieces) for pieces in outputs]


@resource
class OutputParser:
    """Reads one output while it grows. Nothing has to be held back, since everything is text."""

    def __init__(self, in_reasoning: bool):
        pass

    def push(self, pieces):
        text = "".join(piece.value for piece in pieces if piece != Piece_Special(END))
        return [OutputPart_Text(text)] if text else []

    def finish(self):
        return []


def answer(render):
    """The answer to one of several requests: an error in one leaves the others alone."""
    try:
        return Ok(render())
    except Err as error:
        return error


def turn(index: int, message) -> list[Segment]:
    """A message between its tokens. The model itself writes the assistant's words and the token after them."""
    if message.tool_calls:
        raise Err(f"message {index}: this template knows no tool calls")
    if message.reasoning_content is not None:
        raise Err(f"message {index}: this template knows no reasoning")
    if isinstance(message.content, Content_Json):
        raise Err(f"message {index}: this template knows only text as content")
    text = message.content.value if isinstance(message.content, Content_Text) else ""
    weight = 1.0 if message.weight is None else message.weight
    written = message.role == "assistant"

    def segment(piece, generated=False, weight=weight):
        return Segment(piece, index, generated, weight)

    parts = [segment(Piece_Text(part), written, part_weight) for part, part_weight in weighted(index, text, message.spans, weight)]
    return [
        segment(Piece_Special(START)),
        segment(Piece_Text(f"{message.role}\n")),
        *parts,
        segment(Piece_Special(END), written),
        segment(Piece_Text("\n")),
    ]


def weighted(index: int, text: str, spans, weight: float):
    """Cuts a text where its loss weight changes. Spans count bytes of its UTF-8 form."""
    data, done, parts = text.encode(), 0, []
    for span in spans:
        if not done <= span.start <= span.end <= len(data):
            raise Err(f"message {index}: its spans do not fit its text")
        parts += [(data[done : span.start], weight), (data[span.start : span.end], span.weight)]
        done = span.end
    parts.append((data[done:], weight))
    return [(part.decode(), part_weight) for part, part_weight in parts if part]
