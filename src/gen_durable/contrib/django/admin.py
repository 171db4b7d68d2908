"""Instances in Django's admin: to look at, and with the permission ``steer_instance`` to cancel and retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from gen_durable.contrib.django import client
from gen_durable.contrib.django.models import Instance, Lane
from gen_durable.errors import GenDurableError, InvalidArgument
from gen_durable.snapshot import Transition
from gen_durable.status import Status

__all__ = ["InstanceAdmin"]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Instance]
else:  # Django's own class takes no parameter
    _ModelAdmin = admin.ModelAdmin

MOST_LISTED = 1000  # rows; over the view all instances would be sorted for a page, and counted


class InstanceList(ChangeList):
    """Lists the newest instances that fit, as the client finds them: by the index of ids, however many there are."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """The chosen ones among them."""
        rows = super().get_queryset(request, exclude_parameters)
        status, term = request.GET.get("status__exact", ""), self.query.strip()
        try:
            page = client().list(
                machine=request.GET.get("machine"),
                queue=request.GET.get("queue"),
                status=Status(int(status)).label if status.isdigit() and int(status) in set(Status) else None,
                key_prefix=term or None,
                limit=MOST_LISTED,
            )
        except InvalidArgument:  # what can't be a name fits nothing
            return rows.none()
        return rows.filter(pk__in=[found.id for found in page.items] + _ids(term))


def _ids(term: str) -> list[int]:
    """What may be an id in a search."""
    return [int(term)] if term.isascii() and term.isdigit() and int(term) < 2**63 else []


class LaneFilter(admin.SimpleListFilter):
    """A filter whose choices come from the small table of lanes, not from all instances."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The names that there are."""
        names = Lane.objects.order_by().values_list(str(self.parameter_name), flat=True).distinct()
        return [(name, name) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Those of the chosen name."""
        return queryset if self.value() is None else queryset.filter(**{str(self.parameter_name): self.value()})


class MachineFilter(LaneFilter):
    """By machine."""

    title, parameter_name = "machine", "machine"


class QueueFilter(LaneFilter):
    """By queue."""

    title, parameter_name = "queue", "queue"


@admin.register(Instance)
class InstanceAdmin(_ModelAdmin):
    """A list with filters and a search by id or the beginning of a key; a page for each instance."""

    list_display = ("id", "machine", "status", "step", "queue", "key", "attempt", "due_at", "updated_at")
    list_filter = ("status", MachineFilter, QueueFilter)
    search_fields = ("key",)
    search_help_text = "an id, or the beginning of a key"
    ordering = ("-id",)
    show_full_result_count = False
    list_per_page = 50
    actions = ("cancel_selected", "retry_selected")
    fieldsets = (
        (None, {"fields": (("machine", "version"), ("status", "step"), "key", ("queue", "priority"))}),
        ("Runs", {"fields": (("attempt", "crashes"), "worker", "parent_id", "rev")}),
        ("Times", {"fields": ("inserted_at", "due_at", "updated_at", "finished_at")}),
        ("Content", {"fields": ("shown_state", "shown_result", "shown_error")}),
        ("History", {"fields": ("history",)}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The bounded list."""
        return InstanceList

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_steer_permission(self, request: HttpRequest) -> bool:
        """Who may cancel and retry."""
        return bool(request.user.has_perm("gen_durable.steer_instance"))  # type: ignore[union-attr]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id, where it is a number, or by the beginning of a key."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(Q(key__startswith=term) | Q(id__in=_ids(term))), False

    @admin.display(description="state")
    def shown_state(self, instance: Instance) -> SafeString:
        """The committed state."""
        return _shown(instance.state)

    @admin.display(description="result")
    def shown_result(self, instance: Instance) -> SafeString:
        """What it ended with."""
        return _shown(instance.result)

    @admin.display(description="error")
    def shown_error(self, instance: Instance) -> SafeString:
        """The last error, with its traceback."""
        if not instance.error:
            return _shown(None)
        text = f"{instance.error.get('type')}: {instance.error.get('message')}"
        return format_html("<pre>{}</pre>", "\n\n".join(filter(None, [text, instance.error.get("traceback")])))

    @admin.display(description="transitions")
    def history(self, instance: Instance) -> SafeString:
        """The runs of its steps, oldest first."""
        rows = format_html_join(
            "", f"<tr>{'<td>{}</td>' * 7}</tr>", (_cells(transition) for transition in client().history(instance.pk))
        )
        head = ("number", "step", "attempt", "outcome", "at", "seconds", "error")
        names = format_html_join("", "<th>{}</th>", ((name,) for name in head))
        return format_html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", names, rows)

    @admin.action(description="Cancel selected instances", permissions=["steer"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Ends them, where they have not ended."""
        self._steer(request, queryset, "cancelled", lambda id_: client().cancel(id_))

    @admin.action(description="Retry selected instances", permissions=["steer"])
    def retry_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Brings failed and cancelled ones back."""
        self._steer(request, queryset, "retried", lambda id_: client().retry(id_))

    def _steer(self, request: HttpRequest, queryset: QuerySet[Any], done: str, call: Callable[[int], Any]) -> None:
        count = 0
        for id_ in queryset.values_list("pk", flat=True):
            try:
                count += call(id_) is not False
            except GenDurableError as error:
                self.message_user(request, str(error), messages.WARNING)
        self.message_user(request, f"{count} {done}.", messages.SUCCESS if count else messages.INFO)


def _shown(value: Any) -> SafeString:
    if value is None:
        return format_html("{}", "-")
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False))


def _cells(transition: Transition) -> Iterable[Any]:
    error = transition.error or {}
    took = "" if transition.took is None else f"{transition.took:.3f}"
    at = transition.at.isoformat(sep=" ", timespec="milliseconds")
    shown = f"{error['type']}: {error['message']}" if error else ""
    return transition.seq, transition.step, transition.attempt, transition.outcome, at, took, shown
