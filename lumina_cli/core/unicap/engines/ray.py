"""Any other engine on a Ray cluster: batches of rows through Ray Data, one actor with a model per worker.

Workers open image files themselves, so paths and URLs must be valid on all nodes; images in memory are sent
with their rows. Rows keep their order. A dead actor is restarted and its batch repeated; captions depend only
on the image and the seed, so the result is the same. A local cluster ends with the run, even if that is
killed: workers within seconds, Ray's other processes within about a minute. Logs stay in /tmp/ray.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from PIL import Image

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.images.io import png_bytes
from lumina_cli.core.io.jsonl import dump_row, get_error, is_in_memory
from lumina_cli.core.io.parallel.ray_library import error_of_worker, import_ray, start_ray
from lumina_cli.core.registry import CAPTIONERS
from lumina_cli.core.shards.tar import RejectedImage
from lumina_cli.core.unicap.batch import caption_batch
from lumina_cli.core.unicap.engines import open_engine
from lumina_cli.core.unicap.items import CaptionItem, CaptionRequest
from lumina_cli.core.unicap.protocol import Engine

# Batches that one execution of Ray Data takes for each worker: the models are loaded once for so many, and so
# many wait in memory.
WINDOW = 256
_LOCAL = ("transformers", "vllm")  # engines that want a GPU each, where the cluster has any


class Captioner(Engine):
    """Runs `inner` on the cluster of RAY_ADDRESS, or on this machine alone; see `map_rows`."""

    structured = "asked"  # whether the inner engine can is found out by the workers

    def __init__(
        self,
        inner: str,
        model: str | None = None,
        device: str | None = None,
        endpoint: str | None = None,
        batch: int = 8,
    ):
        if inner not in CAPTIONERS or inner == "ray":
            known = [name for name in CAPTIONERS.names() if name not in ("ray", *CAPTIONERS.unlisted)]
            raise UsageError(f"engine 'ray:{inner}': ray supports {', '.join(known)}")
        self.ray = _library()
        self.inner = inner
        self.settings = {
            "words": inner,
            "model": model,
            "device": device,
            "endpoint": endpoint,
            "batch": batch,
        }
        self.owns_cluster = not self.ray.is_initialized()
        if self.owns_cluster:
            start_ray(self.ray)
        context = self.ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = self.ray.cluster_resources()
        self.gpus = int(found.get("GPU", 0)) if inner in _LOCAL else 0
        self.workers = self.gpus or max(1, int(found.get("CPU", 1)))

    def map_rows(
        self, groups: Iterator[list[CaptionItem]], request: CaptionRequest, open_image: Callable
    ) -> Iterator[tuple[Sequence[CaptionItem], int]]:
        """Yield batches of finished items in order, each with the number of engine calls it took."""
        while window := list(islice(groups, WINDOW * self.workers)):
            items = [{"rows": [_pack(item) for item in items]} for items in window]
            data = self.ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Worker,
                batch_size=1,
                batch_format="numpy",
                fn_constructor_args=(self.settings, request, open_image),
                compute=self.ray.data.ActorPoolStrategy(size=min(self.workers, len(items))),
                num_gpus=1 if self.gpus else None,
                num_cpus=None if self.gpus else 1,
            )
            for items, found in zip(window, self._found(data), strict=True):
                yield items, _unpack(items, found)

    def _found(self, data: Any) -> Iterator[str]:
        try:
            for row in data.iter_rows():
                yield row["found"]
        except Exception as error:  # Ray wraps the exceptions of workers
            raise error_of_worker(error) from error

    def close(self) -> None:
        """Disconnect from the cluster; a local cluster ends."""
        if self.owns_cluster and self.ray.is_initialized():
            self.ray.shutdown()


class Worker:
    """The actor: an engine, which captions batches of rows."""

    def __init__(
        self, settings: dict[str, Any], request: CaptionRequest, open_image: Callable[[dict], Image.Image]
    ):
        from lumina_cli.core.unicap.scoring.clip import open_own_check, open_scorer

        self.engine, self.request, self.open_image = open_engine(**settings), request, open_image
        request.check_engine(self.engine)
        self.scorer = (
            open_scorer(request.score, settings["device"]) if request.score else open_own_check(self.engine)
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Caption the rows of one batch, each packed by `_pack`."""
        from lumina_cli.core.unicap.stream import open_item

        items = []
        for index, packed in enumerate(batch["rows"][0]):
            row = json.loads(packed["row"])
            row |= {"image": packed["image"]} if packed["image"] else {}
            items.append(open_item(CaptionItem(index, row), self.open_image))
        calls = caption_batch(
            [item for item in items if item.error is None], self.engine, self.request, self.scorer
        )
        score_counts = dict(self.scorer.stats.counts) if self.scorer else {}
        if self.scorer:
            self.scorer.stats.counts.clear()
        found = [{name: getattr(item, name) for name in _RETURNED} for item in items]
        return {"found": [json.dumps({"calls": calls, "told": score_counts, "shots": found})]}


# The attributes of an item that a worker returns.
_RETURNED = ("error", "code", "captions", "scores", "rejected", "counts", "writer")


def _pack(item: CaptionItem) -> dict[str, Any]:
    image = item.row.get("image")
    data = b""
    if is_in_memory(image):
        data = bytes(image) if isinstance(image, bytes | bytearray) else png_bytes(image.convert("RGB"))
    row = item.row
    if isinstance(image, RejectedImage) and not get_error(row):  # its text would be opened by the worker
        reason = f"{image.image}: {image.reason}" if image.image else image.reason
        row = row | {"error": reason, "code": image.code}
    return {"row": dump_row(row), "image": data}


def _unpack(items: Sequence[CaptionItem], found: str) -> int:
    """Copy the results of a worker into the items; return its number of engine calls."""
    results = json.loads(found)
    for item, values in zip(items, results["shots"], strict=True):
        for name, value in values.items():
            setattr(item, name, value)
    if good := [item for item in items if item.error is None]:  # failed items are not counted
        good[0].counts = Counter(good[0].counts) + Counter(results["told"])
    return results["calls"]


def _library() -> Any:
    ray = import_ray("--engine ray")
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependency("--engine ray needs `pip install 'lumina-cli[ray]'`") from error
    return ray
