"""What a person or a program does to a model version over HTTP; pages and API share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request

from gateway import lifecycle, model_requests
from gateway.accounts import Accounts
from gateway.errors import LifecycleError
from gateway.lifecycle import Action, end_canary
from gateway.model_record import RecordKey
from gateway.store import Store
from gateway.store.models import Request as ModelRequest
from gateway.store.models import VersionState
from gateway.web.access import Access, Caller
from gateway.web.api import access_of

TOO_MANY = "too many attempts to sign"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSteps:
    """The steps, each with its entry in the list of who did what."""

    store: Store
    data_dir: Path
    key: RecordKey
    accounts: Accounts

    def propose(
        self,
        request: Request,
        caller: Caller,
        *,
        model_name: str,
        version: int,
        to_state: VersionState,
        comparison_key: str,
        reason: str,
        fraction: float | None,
        devices: Sequence[str],
        limits: Mapping[str, Any],
    ) -> ModelRequest:
        """Ask that a version become canary or champion. Raises :class:`LifecycleError`."""
        if caller.kind == "anyone":
            raise LifecycleError("log-in is off (web.authentication), and a request says who asks: use the command")
        access = access_of(request)
        made = model_requests.propose(
            self.store,
            key=self.key,
            data_dir=self.data_dir,
            model_name=model_name,
            version=version,
            to_state=to_state,
            comparison_key=comparison_key,
            reason=reason,
            by=caller.actor,
            now=access.clock(),
            fraction=fraction,
            devices=tuple(devices),
            limits=limits,
            detail={"via": "page"},
        )
        access.note(caller, "model proposed", made.request_key, f"{model_name}@{version} to {to_state}")
        return made

    def approve(
        self, request: Request, caller: Caller, *, request_key: str, password: str, reason: str
    ) -> model_requests.Approved:
        """Sign, by the password of the account that is logged in. Raises :class:`LifecycleError`."""
        if caller.holder is None:
            raise LifecycleError("a signature is a person's: log in with an account")
        access: Access = access_of(request)
        key = f"name {caller.holder.name}"
        access.spend(access.log_ins, key, 1, TOO_MANY)
        done = model_requests.approve(
            self.store,
            key=self.key,
            data_dir=self.data_dir,
            accounts=self.accounts,
            request_key=request_key,
            name=caller.holder.name,
            password=password,
            reason=reason,
            now=access.clock(),
            address=caller.address,
            detail={"via": "page"},
        )
        access.log_ins.give_back(key)
        access.note(caller, "model approved", request_key, reason)
        return done

    def end_request(
        self, request: Request, caller: Caller, *, request_key: str, reason: str, withdraw: bool
    ) -> ModelRequest:
        """Refuse a request, or take one's own back. Raises :class:`LifecycleError`."""
        access = access_of(request)
        act = model_requests.withdraw if withdraw else model_requests.refuse
        ended = act(
            self.store,
            key=self.key,
            request_key=request_key,
            by=caller.actor,
            reason=reason,
            now=access.clock(),
            detail={"via": "page"},
        )
        access.note(caller, f"model request {ended.state}", request_key, reason)
        return ended

    def step(
        self, request: Request, caller: Caller, *, model_name: str, version: int, action: Action, reason: str
    ) -> VersionState:
        """Shadow, end of a canary, retire, reopen. Raises :class:`LifecycleError`."""
        access = access_of(request)
        common: dict[str, Any] = {
            "key": self.key,
            "model_name": model_name,
            "version": version,
            "actor": caller.actor,
            "reason": reason,
            "now": access.clock(),
            "detail": {"via": "page"},
        }
        if action is Action.END_CANARY:
            state = end_canary(self.store, **common)
        else:
            state = lifecycle.take_step(self.store, action=action, **common)
        access.note(caller, f"model {action}", f"{model_name}@{version}", reason)
        return state

    def roll_back(self, request: Request, caller: Caller, *, model_name: str, reason: str) -> lifecycle.RolledBack:
        """Let the last former champion judge again. Raises :class:`LifecycleError`."""
        access = access_of(request)
        done = lifecycle.roll_back(
            self.store, model_name=model_name, reason=reason, actor=caller.actor, now=access.clock(), key=self.key
        )
        access.note(caller, "model rolled back", f"{model_name}@{done.to_version}", reason)
        return done
