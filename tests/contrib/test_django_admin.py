"""Instances in the admin: found, filtered, looked at; never changed, but through the client by who may."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import django_jobs as jobs
import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from examples.django_shop.shop.durable import Checkout

from gen_durable.contrib.django import admin, client
from gen_durable.contrib.django.models import Transition

LIST = "/admin/gen_durable/instance/"


@pytest.fixture
def visit(project: str) -> Callable[..., Client]:
    """A browser of somebody of the staff who has these permissions."""

    def log_in(*permissions: str) -> Client:
        user = User.objects.create_user(uuid.uuid4().hex, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        browser = Client(SERVER_NAME="localhost")
        browser.force_login(user)
        return browser

    return log_in


def page(browser: Client, path: str = LIST, **query: Any) -> str:
    answer = browser.get(path, query)
    assert answer.status_code == 200, answer.content
    return answer.content.decode()


def test_a_list_with_search_and_filters(visit: Callable[..., Client]) -> None:
    """By id, by the beginning of a key, by machine, status and queue."""
    name = f"shop {uuid.uuid4().hex}"  # no number begins it
    one = client().insert(Checkout(order=1), key=f"{name}:one")
    two = client().insert(Checkout(order=2), key=f"{name}:two", delay=3600)
    task = jobs.note.enqueue(name)
    browser = visit("view_instance")
    whole = page(browser)
    for id_ in (one.id, two.id, task.id):
        assert f"{LIST}{id_}/change/" in whole
    assert "DjangoCheckout" in whole

    def found(**query: Any) -> list[bool]:
        text = page(browser, **query)
        return [f"{LIST}{id_}/change/" in text for id_ in (one.id, two.id, task.id)]

    assert found(q=f"{name}:") == [True, True, False]
    assert found(q=f"{name}:t") == [False, True, False]
    assert found(q=str(task.id)) == [False, False, True]
    assert found(q="99999999999999999999") == [False, False, False]
    assert found(q="x" * 600) == [False, False, False]
    assert found(machine="django.task") == [False, False, True]
    assert found(queue="shop") == [True, True, False]
    assert found(status__exact=1, q=name) == [False, True, False]


def test_a_page_shows_state_result_error_and_history(visit: Callable[..., Client], work: Callable[..., None]) -> None:
    """Whatever is in them is text: nothing of it becomes markup."""
    result = jobs.broken.enqueue("<b>bold</b>")
    done = jobs.add.enqueue(20, b=22)
    work(int(result.id), int(done.id))
    browser = visit("view_instance")
    text = page(browser, f"{LIST}{result.id}/change/")
    assert "LookupError" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>bold" not in text
    assert "Traceback" in text
    text = page(browser, f"{LIST}{done.id}/change/")
    assert "&quot;sum&quot;: 42" in text
    assert "<td>run</td><td>0</td><td>done</td>" in text
    assert browser.get(f"{LIST}999999999/change/").status_code == 302
    assert Transition.objects.filter(instance_id=0).count() == 0


def test_nobody_may_add_change_or_delete(visit: Callable[..., Client]) -> None:
    """Not the superuser either."""
    handle = client().insert(Checkout(order=1))
    browser = Client(SERVER_NAME="localhost")
    browser.force_login(User.objects.create_superuser(uuid.uuid4().hex))
    assert browser.get(f"{LIST}add/").status_code == 403
    assert browser.get(f"{LIST}{handle.id}/delete/").status_code == 403
    assert browser.post(f"{LIST}{handle.id}/change/", {"step": "other"}).status_code == 403
    text = page(browser, f"{LIST}{handle.id}/change/")
    assert 'name="_save"' not in text
    assert visit().get(LIST).status_code == 403
    assert client().get(handle.id).step == "begin"


def test_who_may_cancels_and_retries(visit: Callable[..., Client]) -> None:
    """The actions are the client's calls; without the permission they are not there."""
    handles = [client().insert(Checkout(order=n)) for n in range(2)]
    chosen = {"_selected_action": [handle.id for handle in handles]}
    looker, operator = visit("view_instance"), visit("view_instance", "steer_instance")
    assert "cancel_selected" not in page(looker)
    looker.post(LIST, {"action": "cancel_selected", **chosen})
    assert handles[0].get().status == "runnable"
    assert "cancel_selected" in page(operator)

    def act(action: str) -> str:
        return operator.post(LIST, {"action": action, **chosen}, follow=True).content.decode()

    assert "2 cancelled." in act("cancel_selected")
    assert [handle.get().status for handle in handles] == ["cancelled", "cancelled"]
    assert "0 cancelled." in act("cancel_selected")
    assert "2 retried." in act("retry_selected")
    assert [handle.get().status for handle in handles] == ["runnable", "runnable"]
    assert "only a failed or cancelled one can be retried" in act("retry_selected")


def test_a_list_has_a_bound(visit: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of millions the newest are listed and counted; an older one is found by its id."""
    ids = [item.id for item in client().insert_many(Checkout(order=n) for n in range(5))]
    monkeypatch.setattr(admin, "MOST_LISTED", 3)
    browser = visit("view_instance")
    text = page(browser)
    assert "3 instances" in text
    assert [f"{LIST}{id_}/change/" in text for id_ in ids] == [False, False, True, True, True]
    assert f"{LIST}{ids[0]}/change/" in page(browser, q=str(ids[0]))
