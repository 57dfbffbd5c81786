from __future__ import annotations

import json

import pytest

from tests.support.relay_commands import NOW, Run


def test_pending_invitations_are_listed(run: Run) -> None:
    run("invite", "home", "--host", "vps", "--expires", "2d")
    run("invite", "office", "--port", "9000", "--port", "80")
    status, out, err = run("invitations")
    assert (status, err) == (0, "")
    assert out == "NAME    PORTS    EXPIRES\nhome    11111    in 2d\noffice  9000 +1  in 1h\n"
    status, out, _ = run("invitations", "--json")
    assert json.loads(out)[1] == {
        "name": "office",
        "ports": [9000, 80],
        "created": int(NOW),
        "expires": int(NOW) + 3600,
        "expired": False,
    }


def test_an_expired_invitation_is_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("invite", "home", "--host", "vps")
    monkeypatch.setattr("time.time", lambda: NOW + 3600)
    assert run("invitations")[1].endswith("home  11111  expired\n")
    assert json.loads(run("invitations", "--json")[1])[0]["expired"] is True


def test_an_invitation_can_be_cancelled(run: Run) -> None:
    run("invite", "home", "--host", "vps")
    assert run("invitations", "--cancel", "home") == (
        0,
        "",
        "the invitation for home is cancelled\n",
    )
    assert run("invitations") == (0, "", "no invitation is pending\n")
    assert run("invitations", "--json") == (0, "[]\n", "")
    assert run("invitations", "--cancel", "home") == (
        1,
        "",
        "relay-server: there is no pending invitation for home\n",
    )
