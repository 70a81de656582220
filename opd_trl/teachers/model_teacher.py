"""A teacher with a model of its own: another model, the student at step 0, or a moving average of the student."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from trl.trainer.utils import create_model_from_path

from ..models.agreement import fold_head
from ..models.forward import vocabulary_rows, window_of
from ..models.loading import plain_models
from ..models.sharding import is_sharded, move_towards, prepare_frozen, whole_state_dict, write_whole
from .base import Host, Teacher, path_of, scoring_mode
from .own_logits import compare_logits
from .vocabulary import SharedIds, compare_vocabularies


# The first torch whose `fully_shard` takes weights that are integers.
FSDP_SHARDS_INTEGERS = "2.12"


class ModelTeacher(Teacher):
    """A model in this process, frozen or moving with the student.

    Args:
        model: the teacher; frozen here.
        update_rate: share of the student in each update; 0 never moves.
        shared_ids: which ids of the student it knows; default: it has the student's tokenizer.
    """

    def __init__(self, model: nn.Module, *, update_rate: float = 0.0, shared_ids: SharedIds | None = None):
        self.model = model.requires_grad_(False).eval()
        fold_head(self.model)
        self.update_rate, self._given_ids = update_rate, shared_ids
        self.moves = update_rate > 0
        self.is_frozen = not self.moves
        self.works_on: torch.device | None = None  # where it rests on the CPU between two scorings

    def check_placement(self, host: Host) -> None:
        if getattr(self.model, "is_quantized", False):
            check_quantized(host)
        if self.moves and host.args.teacher_rows_ahead is not None:
            self._refuse_scoring_ahead(host, "moves with the student")
        if host.args.teacher_offload and is_sharded(host):
            raise ValueError(
                "teacher_offload='cpu' moves a whole teacher, and this engine shards it. Use the engine's own "
                "offloading (offload_param_device: cpu, fsdp_offload_params: true), or ZeRO-2 or DDP."
            )

    def prepare(self, host: Host) -> None:
        config, student = self.model.config.get_text_config(), host.model.config.get_text_config()
        vocab, rows = host.tokenizer.get_vocab(), [vocabulary_rows(x) for x in (student, config)]
        self.shared_ids = self._given_ids or compare_vocabularies(vocab, vocab, *rows)
        self.window = window_of(config)
        self.place(host)
        with self.scoring(host.model) as module:
            compare_logits(host, module, min(self.shared_ids.num_rows, rows[1]), window=self.window)

    def place(self, host: Host) -> None:
        """Hand the model to the engine; an offloaded one stays a plain module on the CPU."""
        if host.args.teacher_offload:
            self.rest_on_cpu(host.accelerator.device)
        else:
            self.model = prepare_frozen(host, self.model)

    def source(self, host: Host) -> str:
        return super().source(host) if host.args.teaches_itself else path_of(host, self.model)

    def rest_on_cpu(self, works_on: torch.device) -> None:
        """Keep the body of the model on the CPU except while it scores; the head stays where the loss reads it."""
        self.works_on = works_on
        self.model.get_output_embeddings().to(works_on)
        move_body(self.model, torch.device("cpu"))

    @contextmanager
    def scoring(self, student: nn.Module) -> Iterator[nn.Module]:
        if self.works_on is not None:
            move_body(self.model, self.works_on)
        try:
            with scoring_mode(self.model) as module:
                yield module
        finally:
            if self.works_on is not None:
                move_body(self.model, torch.device("cpu"))

    def update(self, student: nn.Module) -> None:
        if self.moves:
            move_towards(zip(self.model.parameters(), student.parameters(), strict=True), self.update_rate)

    def save(self, host: Host, folder: Path) -> None:
        """Save a moving model as one that can be loaded by itself."""
        if self.moves:
            model = host.accelerator.unwrap_model(self.model)
            state_dict = whole_state_dict(model)
            if host.args.should_save:
                model.save_pretrained(folder, state_dict=state_dict)

    def load(self, host: Host, folder: Path) -> None:
        """Take up the weights of a moving model, sharded or not."""
        if self.moves:
            with plain_models(host.args):
                saved = create_model_from_path(str(folder), dtype="auto", device_map=None)
            for parameter, value in zip(self.model.parameters(), saved.parameters(), strict=True):
                write_whole(parameter, value)


def check_quantized(host: Host) -> None:
    """Refuse what would give a quantized teacher other numbers without an error, or stop deep inside torch."""
    remedy = "serve it with `opd-trl serve-teacher`, or load it unquantized."
    if host.is_deepspeed_enabled and is_sharded(host):
        raise ValueError(
            "a quantized teacher under ZeRO-3, which would cut its packed weights apart. "
            f"Use ZeRO-2, DDP or FSDP2, {remedy}"
        )
    if host.is_fsdp_enabled and torch.__version__ < FSDP_SHARDS_INTEGERS:
        raise ValueError(
            f"a quantized teacher under FSDP2 with torch {torch.__version__}, which cannot shard packed weights. "
            f"Update to torch {FSDP_SHARDS_INTEGERS} or later, use ZeRO-2 or DDP, {remedy}"
        )
    if host.args.teacher_offload:
        raise ValueError(
            "teacher_offload with a quantized teacher, whose scales would stay behind. Leave teacher_offload out."
        )


def body(model: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a model but its LM head (and the embeddings tied to it)."""
    head = {id(x) for x in model.get_output_embeddings().parameters()}
    return [x for x in (*model.parameters(), *model.buffers()) if id(x) not in head]


def move_body(model: nn.Module, device: torch.device) -> None:
    """Move the `body` of a model."""
    for tensor in body(model):
        tensor.data = tensor.data.to(device)
