"""One deployment a session: one prefill worker, one decode worker, the demo model."""

from collections.abc import Iterator

import pytest

from tests.serve.deployment import Deployment

CLIENT_BUFFER_TOKENS = 300  # few, for a client that doesn't read


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/serve/" in str(item.path) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Started where another package of our name lies, as the sources do beside an installed one: nobody imports it."""
    cwd = tmp_path_factory.mktemp("checkout")
    (cwd / "rtp_llm").mkdir()
    (cwd / "rtp_llm" / "__init__.py").write_text("raise ImportError('of the working directory')")
    found = Deployment("--router.client-buffer-tokens", str(CLIENT_BUFFER_TOKENS), cwd=cwd)
    yield found
    assert found.stop() == 0, "\n".join(found.lines)


@pytest.fixture
def url(deployment: Deployment) -> str:
    return deployment.url
