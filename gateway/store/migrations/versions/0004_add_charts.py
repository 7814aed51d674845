"""Add chart_state and chart_study: where the sequential charts stand, and what they have seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chart_state",
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("scope", sa.String(length=192), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("studies", sa.Integer(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model_name", "model_version", "scope", name=op.f("pk_chart_state")),
    )
    op.create_table(
        "chart_study",
        sa.Column("study_key", sa.String(length=32), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("prediction_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study_key"], ["study.study_key"], name=op.f("fk_chart_study_study_key")),
        sa.PrimaryKeyConstraint("study_key", "model_name", "model_version", name=op.f("pk_chart_study")),
    )
    with op.batch_alter_table("chart_study", schema=None) as batch_op:
        batch_op.create_index("ix_chart_study_model", ["model_name", "model_version", "prediction_id"], unique=False)


def downgrade() -> None:
    op.drop_table("chart_study")
    op.drop_table("chart_state")
