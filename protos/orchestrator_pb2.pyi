from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "token", "name", "device", "data_address", "incarnation", "curve_public_key", "identity_proof")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CURVE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PROOF_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    token: str
    name: str
    device: DeviceInfo
    data_address: str
    incarnation: str
    curve_public_key: bytes
    identity_proof: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., token: _Optional[str] = ..., name: _Optional[str] = ..., device: _Optional[_Union[DeviceInfo, _Mapping]] = ..., data_address: _Optional[str] = ..., incarnation: _Optional[str] = ..., curve_public_key: _Optional[bytes] = ..., identity_proof: _Optional[bytes] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("kind", "model", "memory_bytes", "host", "host_cores", "region")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    HOST_CORES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    model: str
    memory_bytes: int
    host: str
    host_cores: int
    region: str
    def __init__(self, kind: _Optional[str] = ..., model: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., host: _Optional[str] = ..., host_cores: _Optional[int] = ..., region: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("session", "run", "job_json", "heartbeat_s", "relay_address", "relay_key", "committed", "committed_plan", "committed_norm")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    RELAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RELAY_KEY_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_PLAN_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_NORM_FIELD_NUMBER: _ClassVar[int]
    session: str
    run: str
    job_json: str
    heartbeat_s: float
    relay_address: str
    relay_key: bytes
    committed: int
    committed_plan: int
    committed_norm: float
    def __init__(self, session: _Optional[str] = ..., run: _Optional[str] = ..., job_json: _Optional[str] = ..., heartbeat_s: _Optional[float] = ..., relay_address: _Optional[str] = ..., relay_key: _Optional[bytes] = ..., committed: _Optional[int] = ..., committed_plan: _Optional[int] = ..., committed_norm: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("heartbeat", "profiled", "links_measured", "ready", "step_done", "saved", "evaluated", "failed", "leaving", "generated", "step_vote", "holds", "copied", "followed", "met")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROFILED_FIELD_NUMBER: _ClassVar[int]
    LINKS_MEASURED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STEP_DONE_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    STEP_VOTE_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    heartbeat: Heartbeat
    profiled: Profiled
    links_measured: LinksMeasured
    ready: Ready
    step_done: StepDone
    saved: Saved
    evaluated: Evaluated
    failed: Failed
    leaving: Leaving
    generated: Generated
    step_vote: StepVote
    holds: Holds
    copied: Copied
    followed: Followed
    met: Met
    def __init__(self, heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., profiled: _Optional[_Union[Profiled, _Mapping]] = ..., links_measured: _Optional[_Union[LinksMeasured, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., step_done: _Optional[_Union[StepDone, _Mapping]] = ..., saved: _Optional[_Union[Saved, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., generated: _Optional[_Union[Generated, _Mapping]] = ..., step_vote: _Optional[_Union[StepVote, _Mapping]] = ..., holds: _Optional[_Union[Holds, _Mapping]] = ..., copied: _Optional[_Union[Copied, _Mapping]] = ..., followed: _Optional[_Union[Followed, _Mapping]] = ..., met: _Optional[_Union[Met, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("memory_used_bytes", "waits", "waits_for")
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    memory_used_bytes: int
    waits: bool
    waits_for: int
    def __init__(self, memory_used_bytes: _Optional[int] = ..., waits: bool = ..., waits_for: _Optional[int] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("name", "forward_flops", "backward_flops", "parameter_bytes", "boundary_bytes", "saved_bytes", "state_bytes", "tied_to", "working_bytes", "pair_flops", "keys")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIED_TO_FIELD_NUMBER: _ClassVar[int]
    WORKING_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAIR_FLOPS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    forward_flops: float
    backward_flops: float
    parameter_bytes: int
    boundary_bytes: int
    saved_bytes: int
    state_bytes: int
    tied_to: str
    working_bytes: int
    pair_flops: float
    keys: _containers.RepeatedCompositeFieldContainer[Keys]
    def __init__(self, name: _Optional[str] = ..., forward_flops: _Optional[float] = ..., backward_flops: _Optional[float] = ..., parameter_bytes: _Optional[int] = ..., boundary_bytes: _Optional[int] = ..., saved_bytes: _Optional[int] = ..., state_bytes: _Optional[int] = ..., tied_to: _Optional[str] = ..., working_bytes: _Optional[int] = ..., pair_flops: _Optional[float] = ..., keys: _Optional[_Iterable[_Union[Keys, _Mapping]]] = ...) -> None: ...

class Keys(_message.Message):
    __slots__ = ("n_bytes", "window")
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    n_bytes: int
    window: int
    def __init__(self, n_bytes: _Optional[int] = ..., window: _Optional[int] = ...) -> None: ...

class Profiled(_message.Message):
    __slots__ = ("layers", "forward_s", "backward_s", "optimizer_s", "data_digest", "n_samples", "n_eval_samples", "forward_fixed_s", "backward_fixed_s", "codecs", "forward_pairs_s", "backward_pairs_s")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_S_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_S_FIELD_NUMBER: _ClassVar[int]
    DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    N_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    N_EVAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIXED_S_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIXED_S_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PAIRS_S_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_PAIRS_S_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    forward_s: _containers.RepeatedScalarFieldContainer[float]
    backward_s: _containers.RepeatedScalarFieldContainer[float]
    optimizer_s: _containers.RepeatedScalarFieldContainer[float]
    data_digest: str
    n_samples: int
    n_eval_samples: int
    forward_fixed_s: _containers.RepeatedScalarFieldContainer[float]
    backward_fixed_s: _containers.RepeatedScalarFieldContainer[float]
    codecs: _containers.RepeatedCompositeFieldContainer[CodecSpeed]
    forward_pairs_s: _containers.RepeatedScalarFieldContainer[float]
    backward_pairs_s: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., forward_s: _Optional[_Iterable[float]] = ..., backward_s: _Optional[_Iterable[float]] = ..., optimizer_s: _Optional[_Iterable[float]] = ..., data_digest: _Optional[str] = ..., n_samples: _Optional[int] = ..., n_eval_samples: _Optional[int] = ..., forward_fixed_s: _Optional[_Iterable[float]] = ..., backward_fixed_s: _Optional[_Iterable[float]] = ..., codecs: _Optional[_Iterable[_Union[CodecSpeed, _Mapping]]] = ..., forward_pairs_s: _Optional[_Iterable[float]] = ..., backward_pairs_s: _Optional[_Iterable[float]] = ...) -> None: ...

class CodecSpeed(_message.Message):
    __slots__ = ("name", "encode_s", "decode_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    encode_s: float
    decode_s: float
    def __init__(self, name: _Optional[str] = ..., encode_s: _Optional[float] = ..., decode_s: _Optional[float] = ...) -> None: ...

class LinkSample(_message.Message):
    __slots__ = ("peer", "latency_s", "bandwidth_Bps", "bandwidth_striped_Bps", "relayed", "error")
    PEER_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BPS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_STRIPED_BPS_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    peer: str
    latency_s: float
    bandwidth_Bps: float
    bandwidth_striped_Bps: float
    relayed: bool
    error: str
    def __init__(self, peer: _Optional[str] = ..., latency_s: _Optional[float] = ..., bandwidth_Bps: _Optional[float] = ..., bandwidth_striped_Bps: _Optional[float] = ..., relayed: bool = ..., error: _Optional[str] = ...) -> None: ...

class LinksMeasured(_message.Message):
    __slots__ = ("links",)
    LINKS_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[LinkSample]
    def __init__(self, links: _Optional[_Iterable[_Union[LinkSample, _Mapping]]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("plan_version", "next_step")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    next_step: int
    def __init__(self, plan_version: _Optional[int] = ..., next_step: _Optional[int] = ...) -> None: ...

class SpanMsg(_message.Message):
    __slots__ = ("kind", "start_s", "end_s", "mb", "peer", "n_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    MB_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    start_s: float
    end_s: float
    mb: int
    peer: int
    n_bytes: int
    def __init__(self, kind: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., mb: _Optional[int] = ..., peer: _Optional[int] = ..., n_bytes: _Optional[int] = ...) -> None: ...

class Holds(_message.Message):
    __slots__ = ("step", "layers")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    step: int
    layers: Range
    def __init__(self, step: _Optional[int] = ..., layers: _Optional[_Union[Range, _Mapping]] = ...) -> None: ...

class StepVote(_message.Message):
    __slots__ = ("plan_version", "step", "loss_sum", "tokens", "squares", "duration_s", "sent_bytes", "raw_bytes", "own_square", "bad_activation", "bad_gradient", "checked", "check_error")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SQUARES_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_SQUARE_FIELD_NUMBER: _ClassVar[int]
    BAD_ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    BAD_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    CHECK_ERROR_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    step: int
    loss_sum: float
    tokens: int
    squares: _containers.RepeatedScalarFieldContainer[float]
    duration_s: float
    sent_bytes: int
    raw_bytes: int
    own_square: float
    bad_activation: bool
    bad_gradient: bool
    checked: bool
    check_error: float
    def __init__(self, plan_version: _Optional[int] = ..., step: _Optional[int] = ..., loss_sum: _Optional[float] = ..., tokens: _Optional[int] = ..., squares: _Optional[_Iterable[float]] = ..., duration_s: _Optional[float] = ..., sent_bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., own_square: _Optional[float] = ..., bad_activation: bool = ..., bad_gradient: bool = ..., checked: bool = ..., check_error: _Optional[float] = ...) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("plan_version", "step", "spans", "links")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    step: int
    spans: _containers.RepeatedCompositeFieldContainer[SpanMsg]
    links: _containers.RepeatedCompositeFieldContainer[LinkUse]
    def __init__(self, plan_version: _Optional[int] = ..., step: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[SpanMsg, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkUse, _Mapping]]] = ...) -> None: ...

class LinkUse(_message.Message):
    __slots__ = ("peer", "kind", "codec", "sent_bytes", "raw_bytes", "encode_s", "decode_s", "relative_error", "resends")
    PEER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    RESENDS_FIELD_NUMBER: _ClassVar[int]
    peer: int
    kind: str
    codec: str
    sent_bytes: int
    raw_bytes: int
    encode_s: float
    decode_s: float
    relative_error: float
    resends: int
    def __init__(self, peer: _Optional[int] = ..., kind: _Optional[str] = ..., codec: _Optional[str] = ..., sent_bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., encode_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., relative_error: _Optional[float] = ..., resends: _Optional[int] = ...) -> None: ...

class Saved(_message.Message):
    __slots__ = ("step", "files")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    step: int
    files: _containers.RepeatedCompositeFieldContainer[LayerFile]
    def __init__(self, step: _Optional[int] = ..., files: _Optional[_Iterable[_Union[LayerFile, _Mapping]]] = ...) -> None: ...

class LayerFile(_message.Message):
    __slots__ = ("name", "sha256", "n_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    n_bytes: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., n_bytes: _Optional[int] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("step", "loss_sum", "tokens")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss_sum: float
    tokens: int
    def __init__(self, step: _Optional[int] = ..., loss_sum: _Optional[float] = ..., tokens: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("code", "reason", "fatal", "peer", "plan_version")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    fatal: bool
    peer: str
    plan_version: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., fatal: bool = ..., peer: _Optional[str] = ..., plan_version: _Optional[int] = ...) -> None: ...

class Copied(_message.Message):
    __slots__ = ("plan_version", "step")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    step: int
    def __init__(self, plan_version: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Followed(_message.Message):
    __slots__ = ("version", "step", "error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    version: int
    step: int
    error: str
    def __init__(self, version: _Optional[int] = ..., step: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Met(_message.Message):
    __slots__ = ("version", "step", "layers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    step: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerDigest]
    def __init__(self, version: _Optional[int] = ..., step: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerDigest, _Mapping]]] = ...) -> None: ...

class LayerDigest(_message.Message):
    __slots__ = ("layer", "sha256")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    layer: int
    sha256: bytes
    def __init__(self, layer: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("reason", "departure")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEPARTURE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    departure: int
    def __init__(self, reason: _Optional[str] = ..., departure: _Optional[int] = ...) -> None: ...

class Generated(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("profile", "measure_links", "take_plan", "run_steps", "save", "evaluate", "stop", "abort_plan", "commit", "admit", "follow", "meet", "unfollow")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_LINKS_FIELD_NUMBER: _ClassVar[int]
    TAKE_PLAN_FIELD_NUMBER: _ClassVar[int]
    RUN_STEPS_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ABORT_PLAN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    MEET_FIELD_NUMBER: _ClassVar[int]
    UNFOLLOW_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    measure_links: MeasureLinks
    take_plan: TakePlan
    run_steps: RunSteps
    save: Save
    evaluate: Evaluate
    stop: Stop
    abort_plan: AbortPlan
    commit: Commit
    admit: Admit
    follow: Follow
    meet: Meet
    unfollow: Unfollow
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ..., measure_links: _Optional[_Union[MeasureLinks, _Mapping]] = ..., take_plan: _Optional[_Union[TakePlan, _Mapping]] = ..., run_steps: _Optional[_Union[RunSteps, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., evaluate: _Optional[_Union[Evaluate, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., abort_plan: _Optional[_Union[AbortPlan, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., admit: _Optional[_Union[Admit, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., meet: _Optional[_Union[Meet, _Mapping]] = ..., unfollow: _Optional[_Union[Unfollow, _Mapping]] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Admit(_message.Message):
    __slots__ = ("curve_public_keys",)
    CURVE_PUBLIC_KEYS_FIELD_NUMBER: _ClassVar[int]
    curve_public_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, curve_public_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("name", "data_address", "curve_public_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CURVE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_address: str
    curve_public_key: bytes
    def __init__(self, name: _Optional[str] = ..., data_address: _Optional[str] = ..., curve_public_key: _Optional[bytes] = ...) -> None: ...

class MeasureLinks(_message.Message):
    __slots__ = ("peers", "probe_bytes", "streams")
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PROBE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    probe_bytes: int
    streams: int
    def __init__(self, peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., probe_bytes: _Optional[int] = ..., streams: _Optional[int] = ...) -> None: ...

class PlanMsg(_message.Message):
    __slots__ = ("version", "placement", "partition", "micro_batches", "schedule", "warmup_extra", "predicted_step_s", "reasons", "micro_batch", "recompute", "streams", "activation_codecs", "gradient_codecs", "reduce_codecs", "local_steps", "split_sequence", "shard_sizes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_EXTRA_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_STEP_S_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_CODECS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CODECS_FIELD_NUMBER: _ClassVar[int]
    REDUCE_CODECS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SHARD_SIZES_FIELD_NUMBER: _ClassVar[int]
    version: int
    placement: _containers.RepeatedCompositeFieldContainer[Placement]
    partition: _containers.RepeatedCompositeFieldContainer[Range]
    micro_batches: _containers.RepeatedScalarFieldContainer[int]
    schedule: str
    warmup_extra: int
    predicted_step_s: float
    reasons: _containers.RepeatedScalarFieldContainer[str]
    micro_batch: int
    recompute: bool
    streams: int
    activation_codecs: _containers.RepeatedScalarFieldContainer[str]
    gradient_codecs: _containers.RepeatedScalarFieldContainer[str]
    reduce_codecs: _containers.RepeatedScalarFieldContainer[str]
    local_steps: int
    split_sequence: bool
    shard_sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., placement: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., partition: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., micro_batches: _Optional[_Iterable[int]] = ..., schedule: _Optional[str] = ..., warmup_extra: _Optional[int] = ..., predicted_step_s: _Optional[float] = ..., reasons: _Optional[_Iterable[str]] = ..., micro_batch: _Optional[int] = ..., recompute: bool = ..., streams: _Optional[int] = ..., activation_codecs: _Optional[_Iterable[str]] = ..., gradient_codecs: _Optional[_Iterable[str]] = ..., reduce_codecs: _Optional[_Iterable[str]] = ..., local_steps: _Optional[int] = ..., split_sequence: bool = ..., shard_sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device: _Optional[_Iterable[str]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class TakePlan(_message.Message):
    __slots__ = ("plan", "peers", "restore", "restore_step", "files", "step", "sources", "serves", "guests", "keepers", "loading_s", "copying_s")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    RESTORE_STEP_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    KEEPERS_FIELD_NUMBER: _ClassVar[int]
    LOADING_S_FIELD_NUMBER: _ClassVar[int]
    COPYING_S_FIELD_NUMBER: _ClassVar[int]
    plan: PlanMsg
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    restore: bool
    restore_step: int
    files: _containers.RepeatedCompositeFieldContainer[LayerFile]
    step: int
    sources: _containers.RepeatedCompositeFieldContainer[LayerSource]
    serves: _containers.RepeatedCompositeFieldContainer[LayerPart]
    guests: _containers.RepeatedScalarFieldContainer[str]
    keepers: _containers.RepeatedCompositeFieldContainer[Keeper]
    loading_s: float
    copying_s: float
    def __init__(self, plan: _Optional[_Union[PlanMsg, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., restore: bool = ..., restore_step: _Optional[int] = ..., files: _Optional[_Iterable[_Union[LayerFile, _Mapping]]] = ..., step: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[LayerSource, _Mapping]]] = ..., serves: _Optional[_Iterable[_Union[LayerPart, _Mapping]]] = ..., guests: _Optional[_Iterable[str]] = ..., keepers: _Optional[_Iterable[_Union[Keeper, _Mapping]]] = ..., loading_s: _Optional[float] = ..., copying_s: _Optional[float] = ...) -> None: ...

class Keeper(_message.Message):
    __slots__ = ("holder", "keeper")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    KEEPER_FIELD_NUMBER: _ClassVar[int]
    holder: str
    keeper: str
    def __init__(self, holder: _Optional[str] = ..., keeper: _Optional[str] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("version", "plan_version", "peers", "feeds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    plan_version: int
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    feeds: _containers.RepeatedCompositeFieldContainer[Feed]
    def __init__(self, version: _Optional[int] = ..., plan_version: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., feeds: _Optional[_Iterable[_Union[Feed, _Mapping]]] = ...) -> None: ...

class Feed(_message.Message):
    __slots__ = ("donor", "follower", "layers", "rate_Bps")
    DONOR_FIELD_NUMBER: _ClassVar[int]
    FOLLOWER_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    RATE_BPS_FIELD_NUMBER: _ClassVar[int]
    donor: str
    follower: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    rate_Bps: float
    def __init__(self, donor: _Optional[str] = ..., follower: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., rate_Bps: _Optional[float] = ...) -> None: ...

class Meet(_message.Message):
    __slots__ = ("version", "step")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    version: int
    step: int
    def __init__(self, version: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Unfollow(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class LayerSource(_message.Message):
    __slots__ = ("layer", "donors")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    DONORS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    donors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layer: _Optional[int] = ..., donors: _Optional[_Iterable[str]] = ...) -> None: ...

class LayerPart(_message.Message):
    __slots__ = ("layer", "to", "part", "parts")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    to: str
    part: int
    parts: int
    def __init__(self, layer: _Optional[int] = ..., to: _Optional[str] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ...) -> None: ...

class RunSteps(_message.Message):
    __slots__ = ("plan_version", "start", "stop", "record", "watch", "copy_step", "copy_keeps")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    COPY_STEP_FIELD_NUMBER: _ClassVar[int]
    COPY_KEEPS_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    start: int
    stop: int
    record: _containers.RepeatedScalarFieldContainer[int]
    watch: _containers.RepeatedScalarFieldContainer[int]
    copy_step: int
    copy_keeps: int
    def __init__(self, plan_version: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., record: _Optional[_Iterable[int]] = ..., watch: _Optional[_Iterable[int]] = ..., copy_step: _Optional[int] = ..., copy_keeps: _Optional[int] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Evaluate(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("plan_version", "step", "grad_norm", "check")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    step: int
    grad_norm: float
    check: SpotCheck
    def __init__(self, plan_version: _Optional[int] = ..., step: _Optional[int] = ..., grad_norm: _Optional[float] = ..., check: _Optional[_Union[SpotCheck, _Mapping]] = ...) -> None: ...

class SpotCheck(_message.Message):
    __slots__ = ("stage", "replica", "micro_batch", "checkers")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    CHECKERS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replica: int
    micro_batch: int
    checkers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stage: _Optional[int] = ..., replica: _Optional[int] = ..., micro_batch: _Optional[int] = ..., checkers: _Optional[_Iterable[int]] = ...) -> None: ...

class AbortPlan(_message.Message):
    __slots__ = ("plan_version", "reason")
    PLAN_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    plan_version: int
    reason: str
    def __init__(self, plan_version: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("token", "curve_public_key")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CURVE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    token: str
    curve_public_key: bytes
    def __init__(self, token: _Optional[str] = ..., curve_public_key: _Optional[bytes] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("name", "state", "device", "data_address", "rank", "first_layer", "last_layer", "last_seen_s", "reason", "curve_public_key", "departure", "relayed_to")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CURVE_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    DEPARTURE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_TO_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    device: DeviceInfo
    data_address: str
    rank: int
    first_layer: int
    last_layer: int
    last_seen_s: float
    reason: str
    curve_public_key: bytes
    departure: int
    relayed_to: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., device: _Optional[_Union[DeviceInfo, _Mapping]] = ..., data_address: _Optional[str] = ..., rank: _Optional[int] = ..., first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., last_seen_s: _Optional[float] = ..., reason: _Optional[str] = ..., curve_public_key: _Optional[bytes] = ..., departure: _Optional[int] = ..., relayed_to: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("run", "phase", "reason", "step", "steps", "loss", "eval_loss", "tokens_per_s", "predicted_step_s", "measured_step_s", "workers", "plan", "outlook", "checked")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_STEP_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_STEP_S_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    run: str
    phase: str
    reason: str
    step: int
    steps: int
    loss: float
    eval_loss: float
    tokens_per_s: float
    predicted_step_s: float
    measured_step_s: float
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    plan: PlanMsg
    outlook: str
    checked: str
    def __init__(self, run: _Optional[str] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., predicted_step_s: _Optional[float] = ..., measured_step_s: _Optional[float] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., plan: _Optional[_Union[PlanMsg, _Mapping]] = ..., outlook: _Optional[str] = ..., checked: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("token", "now", "reason")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    token: str
    now: bool
    reason: str
    def __init__(self, token: _Optional[str] = ..., now: bool = ..., reason: _Optional[str] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    def __init__(self, phase: _Optional[str] = ...) -> None: ...

class LayerChunk(_message.Message):
    __slots__ = ("step", "name", "offset", "total_bytes", "data", "sha256")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    step: int
    name: str
    offset: int
    total_bytes: int
    data: bytes
    sha256: str
    def __init__(self, step: _Optional[int] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class PutLayerReply(_message.Message):
    __slots__ = ("n_bytes", "sha256")
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    n_bytes: int
    sha256: str
    def __init__(self, n_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class GetLayerRequest(_message.Message):
    __slots__ = ("step", "name")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    step: int
    name: str
    def __init__(self, step: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...
