"""Continuously batched decoding: images and prompts in, boxes and path tokens out (facts, sections
3-5).

Every distinct image is prefilled once, and its keys and values are held once for all its queries.
Rows hold slots of one batch of static shape. A row goes through coordinate, coordinate, size and
then path tokens at its own pace; a slot whose row has ended is given to the next query. Which rows
have ended is all that is read from the device on the way, and on a GPU it is read one step late,
when the next step is already under way.

Shapes: I images, B rows (slots), N rows admitted together, P image tokens, T prompt tokens
(padded), D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wordmask.model.decoding.path_grammar import START, FreeDecoding, PathGrammar
from wordmask.model.decoding.prompt import Prompt, embed_prompts
from wordmask.model.decoding.sampler import Sampling
from wordmask.model.nn.config import BOX_TOKENS, TokenConfig
from wordmask.model.nn.kv_cache import KVCache, SharedPrefix, next_power_of_two
from wordmask.model.nn.moondream import Moondream
from wordmask.model.nn.region import coord_value, size_value
from wordmask.model.nn.text import causal_mask
from wordmask.model.runtime.devices import OnItsWay, to_device, whole_blocks

ROWS = 64  # slots, unless told otherwise
# a prompt's pass costs much the same for one row as for several: an eighth of the slots is waited
# for
ADMIT_SHARE = 8
PREFILL_TOKENS = 8192  # bounds the memory of reading images and prompts
SLOT_STEP = 64  # the length of a slot is a multiple of this, so that few shapes occur
SEEN_STEP = 16  # and so is what a step attends to
# slots with fixed shapes. A multiple of 16: what is left over after whole vectors is rounded
# otherwise
FIXED_ROWS = 32

Tag = TypeVar("Tag")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What the decoder drew. `box` is (cx, cy, w, h) in unit of image; `ids` are the path tokens
    without the end token.

    `absent`: the decoder ended at once; box and ids are empty of meaning then. `truncated`: the
    token limit cut the path short. `path_logprob`: mean log-probability of the path tokens and the
    end token, as the model has them before the grammar; None without any.
    """

    box: tuple[float, float, float, float]
    ids: tuple[int, ...]
    absent: bool
    truncated: bool
    path_logprob: float | None


class Engine:
    """Draws the paths of any number of queries, `rows` at a time."""

    def __init__(
        self,
        model: Moondream,
        tokens: TokenConfig,
        chooser: PathGrammar | FreeDecoding,
        *,
        rows: int = ROWS,
        max_new_tokens: int | None = None,
        fixed_shapes: bool = False,
        lag: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """`rows` slots, on a CPU rounded up to whole row blocks (see `devices`). `fixed_shapes`: a
        row's result depends on nothing but the row, to the last digit. Images and prompts are then
        read one by one, and every step has `FIXED_ROWS` rows, used or not, whatever `rows` says.
        `lag`: how many steps late it is read which rows have ended; None is 1 on a GPU, else 0.
        `sampling`: absence, box and path are drawn at random; without it, they are the
        likeliest."""
        self.noisy = sampling or (lambda scores: scores)
        self.model, self.tokens, self.chooser, self.fixed_shapes = (
            model,
            tokens,
            chooser,
            fixed_shapes,
        )
        self.device = model.text.wte.device
        self.lag = (0 if self.device.type == "cpu" else 1) if lag is None else lag
        self.rows = FIXED_ROWS if fixed_shapes else whole_blocks(rows, self.device)
        self.limit = tokens.max_new_tokens if max_new_tokens is None else max_new_tokens

    @torch.inference_mode()
    def draw(
        self, asked: Iterable[tuple[Tensor, Sequence[tuple[Tag, Prompt]]]]
    ) -> Iterator[tuple[Tag, Decoded]]:
        """Draw one path per prompt, greedily (or at random, see `sampling`) among the tokens that
        the chooser allows; as they end, not as they began.

        Each item is an image's tokens (P, D) and the prompts about it, each with a tag that comes
        back with its result. Items are taken only as slots come free.
        """
        queue, images, slots = _Queue(self, iter(asked)), self._no_images(), 0
        while (first := queue.slots(self.rows, slots)) is not None:
            slots = first
            yield from self._draw_alike(queue, slots, images)

    def start(self, asked: Iterable[tuple[Tensor, Sequence[tuple[Any, Prompt]]]]) -> Batch:
        """A batch of the first queries, read and ready to step: for those who want to step it
        themselves.
        """
        queue = _Queue(self, iter(asked))
        slots = queue.slots(self.rows, 0)
        if slots is None:
            raise ValueError("asked is empty: give at least one image with a prompt")
        return self._begin(queue, slots, self._no_images())

    def _no_images(self) -> _Images:
        return _Images(at_least=self.rows if self.fixed_shapes else 0)

    def _begin(self, queue: _Queue, slots: int, images: _Images) -> Batch:
        queries = queue.take(self.rows, slots)
        batch = Batch(
            self,
            self.rows if self.fixed_shapes else min(self.rows, self.slots_for(len(queries))),
            slots,
            images,
        )
        batch.admit(queries)
        return batch

    def _draw_alike(
        self, queue: _Queue, slots: int, images: _Images
    ) -> Iterator[tuple[Any, Decoded]]:
        """Draw until the queue is empty or its next prompt needs other slots than those of this
        length.
        """
        batch = self._begin(queue, slots, images)
        looks: deque[_Look] = deque()
        results: deque[_Results] = deque()
        while batch.busy:
            batch.step()
            looks.append(batch.look())
            if len(looks) > self.lag:
                ended = batch.release(looks.popleft())
                results += [ended] if ended else []
            while len(results) > self.lag:
                yield from results.popleft().read(self.tokens.eos_id)
            if batch.free >= max(1, self.rows // ADMIT_SHARE) or not batch.busy:
                batch.admit(queue.take(batch.free, slots))
            if not self.fixed_shapes and not queue.fits(slots):
                batch.shrink()
        for left in results:
            yield from left.read(self.tokens.eos_id)

    def slots_for(self, rows: int) -> int:
        """How many slots a batch of so many rows has."""
        return whole_blocks(next_power_of_two(rows), self.device)

    def slots_of(self, query: _Query) -> int:
        """Length of the slot that a query needs."""
        longest = len(query.prompt.ids) + BOX_TOKENS + self.limit + 1
        return -(-longest // SLOT_STEP) * SLOT_STEP


def prefill_prefix(model: Moondream, tokens: TokenConfig, image_IPD: Tensor) -> KVCache:
    """Keys and values of BOS and the image tokens, which attend to each other in both
    directions.
    """
    images, n_image, _ = image_IPD.shape
    text = model.text
    bos = text.embed(torch.full((images, 1), tokens.bos_id, device=image_IPD.device))
    positions = torch.arange(1 + n_image, device=image_IPD.device).expand(images, -1)
    cache = text.new_cache(images, 1 + n_image)
    text(
        torch.cat([bos, image_IPD], dim=1),
        positions,
        causal_mask(positions, 1 + n_image, 1 + n_image),
        cache,
    )
    return cache


def prefill_prompts(
    model: Moondream, prefix: SharedPrefix, prompts: Sequence[Prompt]
) -> tuple[KVCache, Tensor]:
    """Read prompts after their images: their keys and values, and the residual stream at each
    prompt's last token, (N, D).

    Prompts are padded at the end, the longest up to whole row blocks. The padding writes slots that
    later tokens overwrite before any attends to them.
    """
    x_NTD = embed_prompts(prompts, model.text, model.region)
    x_NTD = F.pad(x_NTD, (0, 0, 0, whole_blocks(x_NTD.shape[1], x_NTD.device) - x_NTD.shape[1]))
    rows, length, _ = x_NTD.shape
    own = torch.arange(length, device=x_NTD.device).expand(rows, -1)
    cache = model.text.new_cache(rows, length)
    hidden = model.text(x_NTD, prefix.length + own, causal_mask(own, length, 0), cache, prefix)
    last = to_device(x_NTD.device, [len(prompt.ids) - 1 for prompt in prompts])
    return cache, hidden[torch.arange(rows, device=x_NTD.device), last]


@dataclass(eq=False)
class _Image:
    """A prefilled image: its own `cache` until it stands at a `place` among those in use. `left`:
    queries about it that still need it.
    """

    cache: KVCache | None
    left: int
    place: int = -1


@dataclass(eq=False)
class _Query:
    """A prompt, the image it is about, and, while it is being answered, its slot and how many
    tokens were drawn.
    """

    tag: Any
    prompt: Prompt
    image: _Image
    slot: int = -1
    steps: int = 0

    @property
    def length(self) -> int:
        """Tokens after the image."""
        return len(self.prompt.ids) + self.steps


class _Queue:
    """Queries in their order. Images are taken from the source, and prefilled, as their queries are
    wanted.
    """

    def __init__(
        self, engine: Engine, source: Iterator[tuple[Tensor, Sequence[tuple[Any, Prompt]]]]
    ) -> None:
        self._engine, self._source = engine, source
        self._ready: deque[_Query] = deque()
        self._ended = False

    def slots(self, count: int, at_least: int) -> int | None:
        """Length of the slots that the next queries want, None if there are none. With fixed
        shapes, as the first of them wants; else as the longest of the next `count`, and never less
        than before."""
        self._fill(count)
        wanted = [self._engine.slots_of(query) for query in self._ready]
        if not wanted or self._engine.fixed_shapes:
            return wanted[0] if wanted else None
        return max(at_least, *wanted)

    def fits(self, slots: int) -> bool:
        """Whether there may be a next query that goes into slots of this length. Reads nothing to
        find out: a lone image is dear.
        """
        return self._fits(self._ready[0], slots) if self._ready else not self._ended

    def take(self, count: int, slots: int) -> list[_Query]:
        """The next queries, `count` at most, that go into slots of this length."""
        self._fill(count)
        taken: list[_Query] = []
        while self._ready and len(taken) < count and self._fits(self._ready[0], slots):
            taken.append(self._ready.popleft())
        return taken

    def _fits(self, query: _Query, slots: int) -> bool:
        needed = self._engine.slots_of(query)
        return needed == slots if self._engine.fixed_shapes else needed <= slots

    def _fill(self, count: int) -> None:
        images: list[tuple[Tensor, Sequence[tuple[Any, Prompt]]]] = []
        ready = len(self._ready)
        while ready < count and not self._ended:
            item = next(self._source, None)
            if item is None:
                self._ended = True
            else:
                images.append(item)
                ready += len(item[1])
        if not images:
            return
        model, tokens = self._engine.model, self._engine.tokens
        at_once = (
            1
            if self._engine.fixed_shapes
            else max(1, PREFILL_TOKENS // (1 + images[0][0].shape[0]))
        )
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            cache = prefill_prefix(model, tokens, torch.stack([image_PD for image_PD, _ in part]))
            for index, (_, prompts) in enumerate(part):
                one = _Image(cache.slice_rows(index, index + 1), left=len(prompts))
                self._ready += [_Query(tag, prompt, one) for tag, prompt in prompts]


@dataclass
class _Boxing:
    """Rows that were admitted together and still draw their boxes, and how many box tokens they
    have. The first row stands there more than once to fill its block."""

    rows_N: Tensor
    drawn: int = 0


@dataclass
class _Look:
    """Who held the slots, and which of them had ended."""

    queries: list[_Query | None]
    done_B: OnItsWay


@dataclass
class _Results:
    """What ended rows have drawn. `numbers` (N, 7): box, log-probability, absent, truncated; `ids`
    (N, limit), -1 where none.
    """

    queries: list[_Query]
    numbers: OnItsWay
    ids: OnItsWay

    def read(self, eos_id: int) -> Iterator[tuple[Any, Decoded]]:
        for query, (cx, cy, w, h, logprob, absent, truncated), ids in zip(
            self.queries, self.numbers.tolist(), self.ids.tolist(), strict=True
        ):
            drawn = [i for i in ids if i >= 0]
            yield (
                query.tag,
                Decoded(
                    box=(cx, cy, w, h),
                    ids=tuple(drawn[:-1] if drawn and drawn[-1] == eos_id else drawn),
                    absent=bool(absent),
                    truncated=bool(truncated),
                    path_logprob=logprob / len(drawn) if drawn else None,
                ),
            )


class _Images:
    """Images that rows ask about, each held once however many rows do, until the last query about
    it has ended. There are `at_least` so many places from the first image on."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._held: list[_Image | None] = []
        self._cache: KVCache | None = None

    @property
    def cache(self) -> KVCache:
        """Of every place up to the last that was ever in use."""
        assert self._cache is not None
        return self._cache.slice_rows(0, len(self._held))

    def hold(self, image: _Image) -> None:
        """Give an image its place, unless it has one."""
        if image.cache is None:
            return
        place = next(
            (place for place, held in enumerate(self._held) if held is None), len(self._held)
        )
        self.put(place, image.cache)
        self._held[place] = image
        image.place, image.cache = place, None

    def let_go(self, image: _Image) -> None:
        """One query fewer needs it."""
        image.left -= 1
        if image.left == 0:
            self._held[image.place] = None

    def put(self, place: int, image: KVCache) -> None:
        """Copy keys and values to a place."""
        places = max(place + 1, self._at_least)
        self._held += [None] * (places - len(self._held))
        if self._cache is None or place >= self._cache.k.shape[1]:
            grown = image.new_zeros(next_power_of_two(places))
            if self._cache is not None:
                grown.copy_rows(slice(0, self._cache.k.shape[1]), self._cache)
            self._cache = grown
        self._cache.copy_rows(slice(place, place + 1), image)

    def close_up(self) -> None:
        """Leave no place empty, where half the places would do."""
        kept = [image for image in self._held if image]
        if self._cache is None or not kept or next_power_of_two(len(kept)) > len(self._held) // 2:
            return
        self._cache = self._cache.select(
            to_device(self._cache.k.device, [image.place for image in kept])
        )
        self._held = list(kept)
        for place, image in enumerate(kept):
            image.place = place


class Batch:
    """Slots and the rows in them. Tensors are per slot: `hidden` the stream at the row's last
    token, `lengths` its next position, `steps` tokens drawn since it came, `done` also where nobody
    is."""

    def __init__(self, engine: Engine, rows: int, slots: int, images: _Images) -> None:
        text = engine.model.text
        self.engine, self.device, self.images = engine, engine.device, images
        self.queries: list[_Query | None] = [None] * rows
        self.boxing: list[_Boxing] = []
        self.cache = text.new_cache(rows, slots)
        self.prefix: SharedPrefix | None = None  # made anew when rows came or moved
        self.hidden = torch.zeros(rows, text.config.dim, device=self.device, dtype=text.wte.dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.steps, self.state = (
            torch.zeros_like(self.lengths),
            torch.full_like(self.lengths, START),
        )
        self.done = torch.ones(rows, dtype=torch.bool, device=self.device)
        self.absent, self.ended, self.forced = (torch.zeros_like(self.done) for _ in range(3))
        self.box = torch.zeros(rows, 4, device=self.device)
        self.logprob = torch.zeros(rows, device=self.device)
        self.ids = torch.full((rows, max(engine.limit, 1)), -1, device=self.device)

    @property
    def busy(self) -> bool:
        return any(self.queries)

    @property
    def free(self) -> int:
        return self.queries.count(None)

    def admit(self, queries: list[_Query]) -> None:
        """Read the queries' prompts and give each a free slot."""
        if not queries:
            return
        places = [slot for slot, holder in enumerate(self.queries) if holder is None]
        longest = max(len(query.prompt.ids) for query in queries)
        at_once = 1 if self.engine.fixed_shapes else max(1, PREFILL_TOKENS // longest)
        for start in range(0, len(queries), at_once):
            part = queries[start : start + at_once]
            self._admit(part, places[start : start + len(part)])

    def _admit(self, queries: list[_Query], slots: list[int]) -> None:
        for query, slot in zip(queries, slots, strict=True):
            query.slot = slot
            self._hold(query)
            self.queries[slot] = query
        self.prefix = None
        places = [self._place_of(query) for query in queries]
        distinct = list(dict.fromkeys(places))
        images = self.images.cache.select(to_device(self.device, distinct))
        prefix = SharedPrefix.build(
            images, [distinct.index(place) for place in places], self.device
        )
        cache, hidden_ND = prefill_prompts(
            self.engine.model, prefix, [query.prompt for query in queries]
        )
        rows_N = to_device(self.device, slots)
        boxing_N = to_device(
            self.device, slots + slots[:1] * (whole_blocks(len(slots), self.device) - len(slots))
        )
        self.hidden[rows_N] = hidden_ND
        self.cache.v.index_fill_(
            1, rows_N, 0.0
        )  # what masked slots hold is multiplied by 0, which mends no NaN of a row before
        self.cache.copy_rows(rows_N, cache)
        self.lengths[rows_N] = to_device(self.device, [query.length for query in queries])
        for tensor, start in (
            (self.steps, 0),
            (self.state, START),
            (self.done, False),
            (self.absent, False),
            (self.ended, False),
            (self.forced, False),
            (self.logprob, 0.0),
            (self.ids, -1),
        ):
            tensor.index_fill_(0, rows_N, start)
        self.boxing.append(_Boxing(boxing_N))

    def _hold(self, query: _Query) -> None:
        """Bring its image among those in use. With fixed shapes each slot has its image to itself:
        no product's shape depends on which rows ask about the same one then."""
        if not self.engine.fixed_shapes:
            self.images.hold(query.image)
            return
        assert query.image.cache is not None
        self.images.put(query.slot, query.image.cache)

    def _place_of(self, query: _Query) -> int:
        return query.slot if self.engine.fixed_shapes else query.image.place

    def step(self) -> None:
        """Draw every row's next token and feed it to the decoder."""
        logits = self.engine.model.text.logits(self.hidden)
        noisy = self.engine.noisy(logits)
        x_BD = self.engine.model.text.embed(self._choose(logits, noisy))
        for boxing in self.boxing:
            x_BD[boxing.rows_N] = self._draw_box(boxing, noisy)
        self.boxing = [boxing for boxing in self.boxing if boxing.drawn < BOX_TOKENS]
        self.steps += 1
        self._advance(x_BD)

    def _choose(self, logits: Tensor, noisy: Tensor) -> Tensor:
        """The next path tokens (B,), recorded for the rows that draw one; for the others they say
        nothing.
        """
        engine, place = self.engine, self.steps - BOX_TOKENS
        left = engine.limit - place
        near = any(
            query and engine.limit - (query.steps - BOX_TOKENS) < engine.chooser.reserve
            for query in self.queries
        )
        ids, state, forced = engine.chooser.choose(noisy, self.state, left, near_limit=near)
        running = (place >= 0) & ~self.done
        ended = running & (ids == engine.tokens.eos_id)
        log_p = logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)
        self.state = torch.where(running, state, self.state)
        self.logprob += torch.where(running, log_p, 0.0)
        self.forced |= forced & running
        self.ended |= ended
        self.done |= ended | (running & (left <= 1))
        # Rows that draw no token write over what they wrote before, or where their first will be.
        at_B1 = place.clamp(0, self.ids.shape[1] - 1)[:, None]
        self.ids.scatter_(
            1, at_B1, torch.where(running[:, None], ids[:, None], self.ids.gather(1, at_B1))
        )
        return ids

    def _draw_box(self, boxing: _Boxing, scores: Tensor) -> Tensor:
        """Centre x, centre y, size, one a step; before them the choice between an object and an end
        at once. Embeddings (N, D).

        What was drawn is read back: a row that stands there more than once may have drawn as many
        numbers, and one of them counts.
        """
        region, tokens, rows_N, noisy = (
            self.engine.model.region,
            self.engine.tokens,
            boxing.rows_N,
            self.engine.noisy,
        )
        hidden = self.hidden[rows_N]
        boxing.drawn += 1
        if boxing.drawn == 1:
            self.absent[rows_N] = scores[rows_N, tokens.eos_id] > scores[rows_N, tokens.coord_id]
        if boxing.drawn < BOX_TOKENS:
            axis = boxing.drawn - 1
            self.box[rows_N, axis] = coord_value(
                noisy(region.coord_logits(hidden)).argmax(-1), region.config.coord_out_dim
            )
            return region.encode_coord(self.box[rows_N, axis, None])
        self.box[rows_N, 2:] = size_value(
            noisy(region.size_logits(hidden)).argmax(-1), region.config.size_out_dim // 2
        )
        # Not earlier: until its box is drawn, a row stays where the others of its group know it.
        self.done[rows_N] = self.absent[rows_N] | (self.engine.limit == 0)
        return region.encode_size(self.box[rows_N, 2:])

    def _advance(self, x_BD: Tensor) -> None:
        seen = self.cache.k.shape[3]
        if not self.engine.fixed_shapes:
            longest = max((query.length for query in self.queries if query), default=0) + 1
            seen = min(seen, -(-longest // SEEN_STEP) * SEEN_STEP)
        own, fixed = self.lengths[:, None], self.engine.fixed_shapes
        if self.prefix is None:
            self.prefix = SharedPrefix.build(
                self.images.cache,
                [query and self._place_of(query) for query in self.queries],
                self.device,
            )
        positions, mask = self.prefix.length + own, causal_mask(own, seen, 0)
        self.hidden = self.engine.model.text(
            x_BD[:, None], positions, mask, self.cache, self.prefix, batch_invariant=fixed
        )[:, 0]
        self.lengths += ~self.done
        for query in self.queries:
            if query:
                query.steps += 1

    def look(self) -> _Look:
        """Ask which rows have ended; the answer can be read later."""
        return _Look(list(self.queries), OnItsWay(self.done))

    def release(self, look: _Look) -> _Results | None:
        """Free the slots of rows that a look found ended, and ask for what they drew."""
        ended = [
            query
            for query, done in zip(look.queries, look.done_B.tolist(), strict=True)
            if query and done and query.slot >= 0  # else it ended at a former look
        ]
        if not ended:
            return None
        rows_N = to_device(self.device, [query.slot for query in ended])
        truncated = self.forced[rows_N] | ~(self.ended[rows_N] | self.absent[rows_N])
        flags = torch.stack(
            [self.logprob[rows_N], self.absent[rows_N].float(), truncated.float()], dim=1
        )
        for query in ended:
            self.queries[query.slot], query.slot = None, -1
            if not self.engine.fixed_shapes:
                self.images.let_go(query.image)
        return _Results(
            ended, OnItsWay(torch.cat([self.box[rows_N], flags], dim=1)), OnItsWay(self.ids[rows_N])
        )

    def shrink(self) -> None:
        """Halve the batch, once or more, if the rows that are left fit; those that draw boxes are
        waited for.
        """
        rows, running = len(self.queries), [query for query in self.queries if query]
        smaller = self.engine.slots_for(len(running))
        if self.boxing or smaller > rows // 2:
            return
        spare = [slot for slot, holder in enumerate(self.queries) if holder is None]
        kept = to_device(
            self.device, [query.slot for query in running] + spare[: smaller - len(running)]
        )
        for name in (
            "hidden",
            "lengths",
            "steps",
            "state",
            "done",
            "absent",
            "ended",
            "forced",
            "box",
            "logprob",
            "ids",
        ):
            setattr(self, name, getattr(self, name)[kept])
        self.cache, self.prefix = self.cache.select(kept), None
        self.images.close_up()
        self.queries = [*running, *[None] * (smaller - len(running))]
        for slot, query in enumerate(running):
            query.slot = slot
