"""Limits under which a daemon cannot work are refused by name; none, and enough, are taken."""

import resource

import pytest

from hostmesh.apply import limits

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("descriptors", "space", "said"),
    [
        (20, INFINITE, "LimitNOFILE=20 is too little"),
        (1024, 100 << 20, "LimitAS=100M is too little"),
        (1024, INFINITE, ""),
        (64, 512 << 20, ""),
    ],
)
def test_what_is_too_little(monkeypatch: pytest.MonkeyPatch, descriptors: int, space: int, said: str) -> None:
    known = {resource.RLIMIT_NOFILE: descriptors, resource.RLIMIT_AS: space}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (known[which], INFINITE))
    if not said:
        return limits.check("some.service")
    with pytest.raises(limits.TooLittle, match=said) as refused:
        limits.check("some.service")
    assert "systemctl edit some.service" in refused.value.hint
    return None
