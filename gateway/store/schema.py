"""Tables of the store. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class Utc(TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out; SQLite, which knows no zone, holds UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

KEY = String(32)
UID = String(64)


study = Table(
    "study",
    metadata,
    Column("study_key", KEY, primary_key=True),
    Column("study_instance_uid", UID, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("priority", Integer, nullable=False, default=0),
    # What a reading list shows. PHI: never in a log, a metric or a file name.
    Column("patient_name", Text, nullable=False, default=""),
    Column("patient_id", Text, nullable=False, default=""),
    Column("patient_birth_date", String(16), nullable=False, default=""),
    Column("patient_sex", String(16), nullable=False, default=""),
    Column("accession_number", Text, nullable=False, default=""),
    Column("study_date", String(16), nullable=False, default=""),
    Column("study_time", String(16), nullable=False, default=""),
    Column("study_description", Text, nullable=False, default=""),
    Column("modality", String(16), nullable=False, default=""),
    Column("instance_count", Integer, nullable=False, default=0),
    Column("revision", Integer, nullable=False, default=0),  # one up with every new instance
    Column("first_received_at", Utc, nullable=False),
    Column("last_received_at", Utc, nullable=False),
    Column("complete_at", Utc, nullable=False),
    Column("queued_at", Utc),
    Column("not_before", Utc),
    Column("judged_at", Utc),
    Column("attempts", Integer, nullable=False, default=0),
    Column("lease_owner", String(64)),
    Column("lease_until", Utc),
    Column("hold_reason", Text),  # NULL: not on hold; nothing of a study on hold expires
    Column("held_by", String(64)),
    Column("held_at", Utc),
)
Index("ix_study_state_complete_at", study.c.state, study.c.complete_at)
Index("ix_study_state_priority_queued_at", study.c.state, study.c.priority, study.c.queued_at)
Index("ix_study_last_received_at", study.c.last_received_at)
Index("ix_study_priority_last_received_at", study.c.priority, study.c.last_received_at)

instance = Table(
    "instance",
    metadata,
    Column("instance_key", KEY, primary_key=True),
    Column("study_key", KEY, ForeignKey("study.study_key"), nullable=False, index=True),
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("sop_class_uid", UID, nullable=False),
    Column("series_instance_uid", UID, nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("modality", String(16), nullable=False, default=""),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("path", String(255), nullable=False),  # relative to the object folder
    Column("calling_ae_title", String(16), nullable=False),
    Column("peer_address", String(64), nullable=False),
    Column("rule", String(128)),  # the rule that chose it; NULL: none did, or not looked at yet
    Column("not_judged_reason", Text, nullable=False, default=""),
    Column("received_at", Utc, nullable=False),
    Column("removed_at", Utc),  # the file has expired; the row stays
)
Index("ix_instance_removed_at_received_at", instance.c.removed_at, instance.c.received_at)

quarantine = Table(
    "quarantine",
    metadata,
    Column("quarantine_key", KEY, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("path", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("peer_address", String(64), nullable=False),
    Column("received_at", Utc, nullable=False),
    Column("removed_at", Utc),  # the file has expired; the row stays
)
Index(
    "ix_quarantine_removed_at_received_at", quarantine.c.removed_at, quarantine.c.received_at, quarantine.c.size_bytes
)

prediction = Table(
    "prediction",
    metadata,
    Column("prediction_id", Integer, primary_key=True, autoincrement=True),
    Column("study_key", KEY, ForeignKey("study.study_key"), nullable=False, index=True),
    Column("instance_key", KEY, ForeignKey("instance.instance_key"), nullable=False),
    Column("frame_index", Integer, nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("demonstration", Boolean, nullable=False),
    Column("logits", JSON, nullable=False),
    Column("probabilities", JSON, nullable=False),  # label -> probability
    Column("findings", JSON, nullable=False),  # list of FindingResult as objects
    Column("ungradable_reasons", JSON, nullable=False),
    Column("explanation", JSON),  # summary; NULL: not judged
    Column("heat_map_path", String(255)),  # relative to the object folder
    Column("acquisition_findings", JSON, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("statistics", JSON, nullable=False),
    Column("device_key", String(192), nullable=False),
    Column("embedding", LargeBinary, nullable=False),  # float32, little endian
    Column("role", String(16), nullable=False, default="champion", server_default="champion"),  # or canary, shadow
    Column("inference_ms", Float),  # its share of the batch's forward pass
    Column("provenance", JSON),  # what else a replay has to know; NULL: judged before it was kept
    Column("paired_version", Integer),  # of a shadow: the version that judged the same frame for others; NULL: none
    Column("agrees", Boolean),  # of a shadow: whether it decided every finding as that version did
    Column("judged_at", Utc, nullable=False),
    UniqueConstraint("instance_key", "frame_index", "model_name", "model_version"),
)
Index("ix_prediction_model", prediction.c.model_name, prediction.c.model_version, prediction.c.prediction_id)
Index(
    "ix_prediction_model_device",
    prediction.c.model_name,
    prediction.c.model_version,
    prediction.c.device_key,
    prediction.c.prediction_id,
)

Index(
    "ix_prediction_role_model",
    prediction.c.role,
    prediction.c.model_name,
    prediction.c.model_version,
    prediction.c.paired_version,
    prediction.c.agrees,
)

result = Table(
    "result",
    metadata,
    Column("result_key", KEY, primary_key=True),
    Column("study_key", KEY, ForeignKey("study.study_key"), nullable=False, index=True),
    Column("kind", String(8), nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("sop_instance_uid", UID, nullable=False, unique=True),
    Column("path", String(255), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("removed_at", Utc),  # the file has expired; the row stays
)
Index("ix_result_removed_at_created_at", result.c.removed_at, result.c.created_at)

delivery = Table(
    "delivery",
    metadata,
    Column("delivery_id", Integer, primary_key=True, autoincrement=True),
    Column("result_key", KEY, ForeignKey("result.result_key"), nullable=False),
    Column("study_key", KEY, ForeignKey("study.study_key"), nullable=False, index=True),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),  # pending, delivered, dead
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Utc, nullable=False),
    Column("last_error", Text, nullable=False, default=""),
    Column("created_at", Utc, nullable=False),
    Column("delivered_at", Utc),
    Column("committed_at", Utc),  # the destination has taken responsibility (storage commitment)
    Column("commitment_key", KEY, index=True),  # the transaction that asks the destination so; NULL: none yet
    UniqueConstraint("result_key", "destination"),
)
Index("ix_delivery_state_next_attempt_at", delivery.c.state, delivery.c.next_attempt_at)

drift_result = Table(
    "drift_result",
    metadata,
    Column("drift_result_id", Integer, primary_key=True, autoincrement=True),
    Column("model_name", String(64), nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("scope", String(192), nullable=False),  # "all" or a device key
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("n", Integer, nullable=False),
    Column("statistic", Float),
    Column("p_value", Float),
    Column("effect", Float),
    Column("threshold_p", Float, nullable=False),
    Column("backend", String(16), nullable=False),
    Column("seen", Integer, nullable=False),  # studies of that scope, ever, when it was computed
    Column("drivers", JSON, nullable=False),
    Column("computed_at", Utc, nullable=False),
)
Index(
    "ix_drift_result_scope",
    drift_result.c.model_name,
    drift_result.c.model_version,
    drift_result.c.scope,
    drift_result.c.kind,
    drift_result.c.drift_result_id,
)

alarm = Table(
    "alarm",
    metadata,
    Column("alarm_key", KEY, primary_key=True),
    Column("model_name", String(64), nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("scope", String(192), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # open, acknowledged, closed
    Column("message", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("p_value", Float),
    Column("effect", Float),
    Column("largest_effect", Float),
    Column("first_seen_at", Utc, nullable=False),
    Column("last_seen_at", Utc, nullable=False),
    Column("handled_by", String(128), nullable=False, default=""),
    Column("handling", Text, nullable=False, default=""),
    Column("handled_at", Utc),
)
Index("ix_alarm_state", alarm.c.state)
Index("ix_alarm_model_scope_kind", alarm.c.model_name, alarm.c.model_version, alarm.c.scope, alarm.c.kind)

chart_state = Table(
    "chart_state",
    metadata,
    # Where the sequential charts of a scope stand; written with chart_study, so that no study counts twice or never.
    Column("model_name", String(64), primary_key=True),
    Column("model_version", Integer, primary_key=True),
    Column("scope", String(192), primary_key=True),  # "all" or a device key
    Column("fingerprint", String(64), nullable=False),  # of the reference
    Column("studies", Integer, nullable=False),  # ever
    Column("state", LargeBinary, nullable=False),
    Column("updated_at", Utc, nullable=False),
)

chart_study = Table(
    "chart_study",
    metadata,
    # Studies that the charts of a model version have seen: a study that is judged again is not new evidence.
    Column("study_key", KEY, ForeignKey("study.study_key"), primary_key=True),
    Column("model_name", String(64), primary_key=True),
    Column("model_version", Integer, primary_key=True),
    Column("prediction_id", Integer, nullable=False),
)
Index("ix_chart_study_model", chart_study.c.model_name, chart_study.c.model_version, chart_study.c.prediction_id)

model_version = Table(
    "model_version",
    metadata,
    # Every version that this gateway knows, and what may run. Workers read it here, so that they neither import MLflow
    # nor wait for it; what is decided here, the registry's aliases follow.
    Column("model_name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),  # the card's
    Column("state", String(16), nullable=False),  # draft, shadow, canary, champion, retired
    Column("state_since", Utc, nullable=False),
    Column("was_champion", Boolean, nullable=False, default=False),
    Column("traffic", JSON, nullable=False),  # of a canary: fraction, devices, limits; {} otherwise
    Column("title", Text, nullable=False),
    Column("demonstration", Boolean, nullable=False),
    Column("folder", Text, nullable=False),  # of the verified bundle
    Column("model_sha256", String(64), nullable=False),
    Column("bundle_sha256", String(64), nullable=False),
    Column("registered_at", Utc, nullable=False),
    Column("registered_by", String(128), nullable=False),
)
Index("ix_model_version_state", model_version.c.state)

model_request = Table(
    "model_request",
    metadata,
    # A proposal to let a version judge for others, and what became of it.
    Column("request_key", KEY, primary_key=True),
    Column("model_name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("to_state", String(16), nullable=False),  # canary, champion
    Column("traffic", JSON, nullable=False),
    Column("comparison_key", KEY),  # the report that meets the card's acceptance criteria
    Column("report_sha256", String(64), nullable=False, default=""),
    Column("reason", Text, nullable=False),
    Column("proposed_by", String(128), nullable=False),
    Column("proposed_at", Utc, nullable=False),
    Column("state", String(16), nullable=False),  # open, carried out, refused, withdrawn, void
    Column("decided_at", Utc),
)
Index("ix_model_request_state", model_request.c.state)

model_record = Table(
    "model_record",
    metadata,
    # Append-only: who did what with which version, and why. Each entry is sealed together with the one before it.
    Column("record_id", Integer, primary_key=True, autoincrement=True),
    Column("at", Utc, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("from_state", String(16), nullable=False, default=""),
    Column("to_state", String(16), nullable=False, default=""),
    Column("request_key", KEY),
    Column("reason", Text, nullable=False, default=""),
    Column("detail", JSON, nullable=False),
    Column("seal", String(64), nullable=False),  # HMAC-SHA-256 over this entry and the seal before it
)
Index("ix_model_record_model", model_record.c.model_name, model_record.c.version, model_record.c.record_id)
Index("ix_model_record_request_key", model_record.c.request_key)

model_failure = Table(
    "model_failure",
    metadata,
    # A version that gave no prediction for a study though it should have.
    Column("failure_id", Integer, primary_key=True, autoincrement=True),
    Column("study_key", KEY, nullable=False, index=True),
    Column("model_name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Utc, nullable=False),
)
Index("ix_model_failure_model", model_failure.c.model_name, model_failure.c.version, model_failure.c.at)

comparison = Table(
    "comparison",
    metadata,
    # Comparisons of two versions, or of one with the truth. The report lies in a folder of the data folder.
    Column("comparison_key", KEY, primary_key=True),
    Column("model_name", String(64), nullable=False),
    Column("version", Integer, nullable=False),  # the one that is asked about
    Column("baseline_name", String(64), nullable=False, default=""),
    Column("baseline_version", Integer),  # NULL: compared with the truth alone
    Column("studies", Text, nullable=False),  # the query or folder
    Column("case_count", Integer, nullable=False),
    Column("truth_count", Integer, nullable=False),
    Column("verdict", String(16), nullable=False),  # met, not met, not judged
    Column("verdicts", JSON, nullable=False),  # of each criterion
    Column("bundle_sha256", String(64), nullable=False),  # of the version that is asked about, criteria included
    Column("baseline_sha256", String(64), nullable=False, default=""),
    Column("folder", Text, nullable=False),  # relative to the data folder
    Column("report_sha256", String(64), nullable=False),  # of report.json
    Column("created_at", Utc, nullable=False),
    Column("created_by", String(128), nullable=False),
)
Index("ix_comparison_model", comparison.c.model_name, comparison.c.version, comparison.c.created_at)

saved_study = Table(
    "saved_study",
    metadata,
    # A de-identified copy of a study for later comparison, outside retention's reach. No PHI.
    Column("saved_key", KEY, primary_key=True),
    Column("study_key", KEY, nullable=False, unique=True),  # the study's row may have expired
    Column("rule", String(128), nullable=False),  # which setting asked for it
    Column("reason", Text, nullable=False),
    Column("person", String(32), nullable=False, default=""),  # pseudonym: what is resampled together
    Column("folder", String(255), nullable=False),  # relative to the data folder
    Column("instance_count", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("received_at", Utc, nullable=False),
    Column("saved_at", Utc, nullable=False),
    Column("modality", String(16), nullable=False, default=""),
    Column("characteristics", JSON, nullable=False),  # age_group, sex, site: coarse, for slices
    Column("removed_at", Utc),
)
Index("ix_saved_study_received_at", saved_study.c.received_at, saved_study.c.saved_key)
Index("ix_saved_study_rule_saved_at", saved_study.c.rule, saved_study.c.saved_at)

saving_place = Table(
    "saving_place",
    metadata,
    # Up to which prediction studies have been looked at for saving; one row, none while no rule saves.
    Column("name", String(16), primary_key=True),
    Column("prediction_id", Integer, nullable=False),
)

saved_image = Table(
    "saved_image",
    metadata,
    # One frame of a saved study as one version judged it.
    Column("saved_image_id", Integer, primary_key=True, autoincrement=True),
    Column("saved_key", KEY, ForeignKey("saved_study.saved_key"), nullable=False, index=True),
    Column("instance_key", KEY, nullable=False),
    Column("frame_index", Integer, nullable=False),
    Column("file_name", String(64), nullable=False),  # in the study's folder
    Column("sha256", String(64), nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("device_key", String(192), nullable=False),
    Column("laterality", String(16), nullable=False, default=""),
    Column("prediction", JSON, nullable=False),  # findings, probabilities, ungradable_reasons, parameters, statistics
    Column("judged_at", Utc, nullable=False),
    UniqueConstraint("instance_key", "frame_index", "model_name", "model_version"),
)
Index("ix_saved_image_model", saved_image.c.model_name, saved_image.c.model_version, saved_image.c.device_key)

truth = Table(
    "truth",
    metadata,
    # What readers said, later: the reference standard that scores are held against. Never changed; a new word of the
    # same reader supersedes the former.
    Column("truth_id", Integer, primary_key=True, autoincrement=True),
    Column("study_key", KEY, nullable=False, index=True),
    Column("instance_key", String(32), nullable=False, default=""),  # empty: of the whole study
    Column("laterality", String(1), nullable=False, default=""),  # R, L; empty: both, or not known
    Column("model_name", String(64), nullable=False),
    Column("finding_name", String(64), nullable=False),
    Column("value", String(16), nullable=False),  # present, absent, ungradable
    Column("source", String(16), nullable=False),  # import, viewer, api
    Column("reader", String(128), nullable=False),
    Column("agrees", Boolean),  # with what the reader had been shown; NULL: was shown nothing
    Column("shown_version", Integer),
    Column("comment", Text, nullable=False, default=""),
    Column("read_at", Utc, nullable=False),
    Column("entered_at", Utc, nullable=False),
    Column("superseded_at", Utc),
)
Index("ix_truth_model_finding", truth.c.model_name, truth.c.finding_name, truth.c.superseded_at)

performance = Table(
    "performance",
    metadata,
    # How versions do on what readers have said so far, and what is estimated where they have not: the last computation.
    Column("model_name", String(64), primary_key=True),
    Column("model_version", Integer, primary_key=True),
    Column("finding_name", String(64), primary_key=True),
    Column("figures", JSON, nullable=False),
    Column("estimate", JSON),  # NULL: none was asked for
    Column("computed_at", Utc, nullable=False),
)

process = Table(
    "process",
    metadata,
    Column("name", String(32), primary_key=True),  # "receiver-0", "worker-1", "monitor"
    Column("pid", Integer, nullable=False),
    Column("started_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
    Column("detail", JSON, nullable=False),  # providers in use, models loaded, counters
)

commitment = Table(
    "commitment",
    metadata,
    # Storage commitment transactions (PS3.4 Annex J), the gateway being provider or user.
    Column("commitment_key", KEY, primary_key=True),
    Column("role", String(8), nullable=False),  # "provider": a peer asked; "user": the gateway asks a destination
    Column("transaction_uid", UID, nullable=False),
    Column("partner", String(64), nullable=False),  # provider: the calling AE title; user: the destination's name
    Column("instances", JSON, nullable=False),  # list of [sop_class_uid, sop_instance_uid]
    Column("state", String(16), nullable=False),  # pending, asked, done, dead
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", Utc, nullable=False),
    Column("last_error", Text, nullable=False, default=""),
    Column("created_at", Utc, nullable=False),
    Column("done_at", Utc),
    UniqueConstraint("role", "partner", "transaction_uid"),
)
Index("ix_commitment_state_next_attempt_at", commitment.c.state, commitment.c.next_attempt_at)

site_key = Table(
    "site_key",
    metadata,
    # Which key the pseudonyms and UIDs in this store follow from, so that another one is noticed. Never the key.
    Column("purpose", String(32), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("recorded_at", Utc, nullable=False),
)

account = Table(
    "account",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("password_hash", Text, nullable=False),  # argon2id
    Column("role", String(16), nullable=False),  # viewer, radiologist, engineer, administrator
    Column("must_change", Boolean, nullable=False, default=False),
    Column("disabled", Boolean, nullable=False, default=False),
    Column("created_at", Utc, nullable=False),
    Column("changed_at", Utc, nullable=False),
    Column("last_seen_at", Utc),
)

session = Table(
    "session",
    metadata,
    Column("session_hash", String(64), primary_key=True),  # SHA-256 of the cookie's value
    Column("name", String(64), ForeignKey("account.name"), nullable=False, index=True),
    Column("address", String(64), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
)

token = Table(
    "token",
    metadata,
    # For machines.
    Column("token_key", KEY, primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),  # SHA-256
    Column("purpose", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc),
    Column("revoked_at", Utc),
    Column("last_used_at", Utc),
)

audit = Table(
    "audit",
    metadata,
    # Who did what, append-only. Subjects are the gateway's own keys and names.
    Column("audit_id", Integer, primary_key=True, autoincrement=True),
    Column("at", Utc, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("address", String(64), nullable=False, default=""),
    Column("action", String(64), nullable=False),
    Column("subject", String(192), nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
)
