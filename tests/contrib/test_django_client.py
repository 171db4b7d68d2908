"""The client of a Django process: in its transactions, in its threads, after a fork; and the shop's views."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test import Client
from examples.django_shop.shop.durable import Checkout
from examples.django_shop.shop.models import Item, Mail, Order, Shipment

from gen_durable.contrib import django as contrib
from gen_durable.contrib.django import client, close, fresh_connections
from gen_durable.contrib.django.models import Instance
from gen_durable.errors import NoSuchInstance

pytestmark = pytest.mark.usefixtures("project")


class Unwanted(Exception):
    pass


def exists(key: str) -> bool:
    return Instance.objects.filter(key=key).exists()


def test_an_insert_rides_in_the_atomic_block() -> None:
    """R20: with ``conn=connection`` the instance exists if and only if the block's transaction commits."""
    with transaction.atomic():
        kept = client().insert(Checkout(order=1), key="kept", conn=connection)
        assert exists("kept")  # in this transaction
        with pytest.raises(NoSuchInstance):
            client().get("kept")  # which nobody else sees
    assert client().get("kept").id == kept.id
    with contextlib.suppress(Unwanted), transaction.atomic():
        client().insert(Checkout(order=2), key="unwanted", conn=connection)
        raise Unwanted
    assert not exists("unwanted")


def test_a_savepoint_takes_its_inserts_along() -> None:
    """R20: an inner ``atomic`` that is rolled back."""
    with transaction.atomic():
        with contextlib.suppress(Unwanted), transaction.atomic():
            client().insert(Checkout(order=3), key="inner", conn=connection)
            raise Unwanted
        client().insert(Checkout(order=4), key="outer", conn=connection)
    assert (exists("inner"), exists("outer")) == (False, True)


def test_without_conn_a_call_is_a_transaction_of_its_own() -> None:
    """Documented: what is not given the connection does not roll back with the block."""
    with contextlib.suppress(Unwanted), transaction.atomic():
        client().insert(Checkout(order=5), key="by itself")
        raise Unwanted
    assert exists("by itself")


def test_all_threads_have_one_client_and_it_opens_itself() -> None:
    """The process's client is made by whoever asks first, and works again after ``close``."""
    close()
    seen: list[Any] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        seen.append((client(), client().counts() is not None))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(found) for found, _ in seen}) == 1
    close()
    close()
    client().counts()
    assert client() is not seen[0][0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gets_a_client_of_its_own() -> None:
    """gunicorn with preload: the child must not use its parent's connections, nor close them."""
    before = client()
    before.counts()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        said = "failed"
        try:
            handle = client().insert(Checkout(order=6), key="of the child")
            said = f"{client() is not before} {handle.key}"
            close()
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "True of the child"
    assert client() is before
    assert client().get("of the child").status == "runnable"


def test_another_database_name_gets_another_client() -> None:
    """Django's test runner changes the name after the project was loaded."""
    before = client()
    settings = connections["default"].settings_dict
    name = settings["NAME"]
    try:
        settings["NAME"] = "test_of_it"
        assert client() is not before
        assert "test_of_it" in str(contrib.engine().settings.url)
    finally:
        settings["NAME"] = name
        close()


def test_a_thread_of_the_worker_gets_over_a_lost_connection() -> None:
    """R27: a connection that broke fails one run; ``fresh_connections`` closes it, so that the next has another."""
    kept = connection.settings_dict["CONN_MAX_AGE"]
    connection.settings_dict["CONN_MAX_AGE"] = None  # for ever
    try:
        with fresh_connections():
            pid = connection.connection.info.backend_pid if Item.objects.count() else 0
        with connections.create_connection("default").cursor() as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            other.connection.close()
        with pytest.raises(OperationalError), fresh_connections():
            Item.objects.count()
        with fresh_connections():
            assert Item.objects.count() == 2
    finally:
        connection.settings_dict["CONN_MAX_AGE"] = kept


# The shop ---------------------------------------------------------------------------------------------


def post(path: str, **body: Any) -> Any:
    answer = Client(SERVER_NAME="localhost").post(path, json.dumps(body), content_type="application/json")
    return answer.status_code, answer.json()


def test_an_order_is_placed_paid_and_shipped(work: Callable[..., None]) -> None:
    """R5, R20: the order and its checkout together, one shipment for two calls of the webhook, a task at the end."""
    code, placed = post("/orders", item="kettle", email="ann@example.com")
    assert code == 201
    number = placed["order"]
    assert Client(SERVER_NAME="localhost").get(f"/orders/{number}").json() == {
        "order": number,
        "status": "placed",
        "paid": None,
        "checkout": "runnable",
        "step": "begin",
        "waits_for": None,
    }
    for _ in range(2):
        assert post("/payments", event="e1", order=number, amount=4200)[0] == 200
    work(f"order:{number}")
    assert Shipment.objects.filter(order_id=number).values_list("paid", flat=True).get() == 4200
    status = Client(SERVER_NAME="localhost").get(f"/orders/{number}").json()
    assert (status["status"], status["paid"], status["checkout"]) == ("shipped", 4200, "done")
    (mail,) = Instance.objects.filter(machine="django.task", state__args__0="ann@example.com")
    work(mail.pk)
    assert Mail.objects.get().text == "Your kettle is on its way."


def test_an_order_that_fails_leaves_nothing() -> None:
    """R20: out of stock: no order, no checkout, the shelf as it was."""
    last = Instance.objects.order_by("-id").values_list("id", flat=True).first()
    assert post("/orders", item="kettle", email="ann@example.com", quantity=4)[0] == 409
    assert post("/orders", item="sofa", email="ann@example.com")[0] == 404
    assert Order.objects.count() == 0
    assert Item.objects.get(pk="kettle").stock == 3
    assert Instance.objects.order_by("-id").values_list("id", flat=True).first() == last
    assert post("/payments", event="e2", order=10**9, amount=1)[0] == 404
    assert Client(SERVER_NAME="localhost").get("/orders/1000000000").status_code == 404
