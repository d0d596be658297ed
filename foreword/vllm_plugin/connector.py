"""KV connector: loads a prompt's keys and values into the blocks of vLLM's KV cache.

In: requests with a sealed order that names a prompt. Out: its keys and values in their blocks. The
scheduler counts a prompt's P tokens as computed elsewhere; those that vLLM's own prefix cache lacks
are loaded before the step that needs them, at every admission, after a preemption too. Each worker
loads the heads and layers that it has. A load that fails fails its request alone: keys are never
computed from placeholders. Knows no text.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger

from foreword.errors import ForewordError, UnsupportedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.store import Entry
from foreword.vllm_plugin import compatibility, settings, signing, tensor_parallel

log = init_logger("vllm.foreword.connector")
ORDER = "foreword"  # its key in a request's transfer parameters
MAX_BYTES = 1 << 30  # of prompts that a worker remembers, its own shards of them

PromptShard = dict[int, tuple[Tensor, Tensor]]


@dataclass
class Load:
    """Keys and values of positions `start..stop-1` of a prompt, for one request's blocks.

    Attributes:
        order: which prompt, as the frontend sealed it.
        reason: why it cannot be loaded; None where it can be tried.
    """

    order: Mapping[str, Any]
    block_ids: list[int]
    start: int
    stop: int
    reason: str | None = None


@dataclass
class Loads(KVConnectorMetadata):
    """What is loaded before a step."""

    loads: list[Load] = field(default_factory=list)


class ForewordConnector(KVConnectorBase_V1):
    """vLLM makes one in the scheduler and one in each worker."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        groups = kv_cache_config.kv_cache_groups if kv_cache_config is not None else None
        compatibility.check_connector(settings.setup_of(vllm_config, groups))
        self._store = settings.store_of(vllm_config)
        self._block_size: int = vllm_config.cache_config.block_size
        self._num_heads: int = vllm_config.model_config.get_total_num_kv_heads()
        self._pending: list[Load] = []
        self._offered: dict[str, int] = {}  # tokens, by requests that were not admitted yet
        self._shards: OrderedDict[str, PromptShard] = OrderedDict()
        self._num_bytes = 0
        self._failed: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        """False: nothing is delivered; a preempted request gets its keys again."""
        return False

    # Scheduler ----------------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """Return how many of a prompt's tokens vLLM's prefix cache lacks."""
        order = _order_of(request)
        if order is None:
            return 0, False
        offered = max(0, _num_virtual(order, request) - num_computed_tokens)
        self._offered[request.request_id] = offered
        return offered, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Remember what has to be loaded into the blocks of an admitted request.

        Where fewer tokens are granted than were offered, placeholders would be computed in their
        place: such a request fails.
        """
        order = _order_of(request)
        if order is None:
            return
        offered = self._offered.pop(request.request_id, num_external_tokens)
        (block_ids,) = blocks.get_block_ids()
        stop = _num_virtual(order, request)
        reason = None
        if not signing.is_sealed(order):
            reason = "its order was not sealed by a front end of this server"
        elif request.skip_reading_prefix_cache:
            reason = "it does not read cached keys"
        elif num_external_tokens != offered:
            reason = f"vLLM grants {num_external_tokens} of its {offered} missing virtual tokens"
        if reason is not None:
            self._pending.append(Load(order, block_ids, 0, stop, reason))
        elif num_external_tokens > 0:
            self._pending.append(Load(order, block_ids, stop - num_external_tokens, stop))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Forget a request that ended before it was admitted; its blocks are free at once."""
        self._offered.pop(request.request_id, None)
        return False, None

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """Return what the step's requests need, and forget it."""
        loads, self._pending = self._pending, []
        return Loads(loads)

    # Worker -------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Find the layers of this worker, and refuse those whose cache takes no keys."""
        context = self._vllm_config.compilation_config.static_forward_context
        self._layers = {tensor_parallel.layer_index(name): context[name] for name in kv_caches}
        ranks = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self._heads = tensor_parallel.heads_of(self._num_heads, *ranks)
        num_own = self._heads.stop - self._heads.start
        for index, layer in self._layers.items():
            if not hasattr(layer.impl, "do_kv_cache_update"):
                raise UnsupportedError(
                    f"{type(layer.impl).__name__} has no way to put keys into its cache; choose "
                    "another --attention-backend"
                )
            if layer.num_kv_heads != num_own:
                raise UnsupportedError(
                    f"layer {index} has {layer.num_kv_heads} key heads on this rank, expected "
                    f"{num_own}"
                )
        log.info("key/value prompts: layers %s, heads %s", sorted(self._layers), self._heads)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load keys and values into the KV cache before the forward pass attends to them."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        for load in metadata.loads:
            try:
                if load.reason is not None:
                    raise UnsupportedError(load.reason)
                self._load(self._shard(load), load)
            except (ForewordError, OSError) as error:
                log.error("a request behind %s fails: %s", load.order.get("entry"), error)
                self._failed |= tensor_parallel.blocks_of(
                    load.block_ids, self._block_size, load.start, load.stop
                )

    def _load(self, shard: PromptShard, load: Load) -> None:
        slots = tensor_parallel.slots_of(load.block_ids, self._block_size, load.start, load.stop)
        for index, layer in self._layers.items():
            cache = layer.kv_cache
            keys, values = (side[load.start : load.stop].to(cache.device) for side in shard[index])
            layer.impl.do_kv_cache_update(layer, keys, values, cache, slots.to(cache.device))

    def _shard(self, load: Load) -> PromptShard:
        """Return this worker's shard of a prompt, read from the store where it is not remembered.

        Raises:
            ForewordError: it is not in the store, was changed, or does not fit.
        """
        key = str(load.order["content"])
        if key in self._shards:
            self._shards.move_to_end(key)
            return self._shards[key]
        name, _, version = str(load.order["entry"]).partition("@")
        path = self._store.directory / name / "versions" / version
        prompt = SoftPrompt.load(self._store.verify(Entry(name, version, path)))
        # Loading compares the values with a hash that the file records; others are hashed here.
        found = prompt.facts.get("content_hash") or prompt.content_hash
        if found != key or prompt.num_virtual_tokens != load.stop:
            raise UnsupportedError(f"{name}@{version} is not the prompt that was asked for")
        dtype = self._vllm_config.model_config.dtype
        shard = tensor_parallel.part_of(prompt.key_values, self._layers, self._heads, dtype)
        self._remember(key, shard)
        return shard

    def _remember(self, key: str, shard: PromptShard) -> None:
        self._shards[key] = shard
        self._num_bytes += _size(shard)
        while self._num_bytes > MAX_BYTES and len(self._shards) > 1:
            self._num_bytes -= _size(self._shards.popitem(last=False)[1])

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks whose keys could not be put there, and forget them."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: all keys are loaded before the first layer."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Do nothing: prompts are never written."""

    def wait_for_save(self) -> None:
        """Do nothing."""


def _order_of(request: Any) -> Mapping[str, Any] | None:
    """Return a request's order; None where the request names no prompt."""
    parameters = getattr(request, "kv_transfer_params", None) or {}
    order = parameters.get(ORDER)
    return order if isinstance(order, dict) and request.num_tokens > 1 else None


def _num_virtual(order: Mapping[str, Any], request: Any) -> int:
    """Return P, bounded so that an order without a seal can do no harm."""
    found = order.get("num_virtual")
    number = found if type(found) is int else 1
    most: int = request.num_tokens - 1
    return min(max(1, number), most)


def _size(shard: PromptShard) -> int:
    return sum(side.nbytes for layer in shard.values() for side in layer)
