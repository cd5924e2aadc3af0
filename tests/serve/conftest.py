import logging

import pytest
from serve.tiny_models import make_files, make_models, predict
from tiny import make_lstm_captioner

from raycap.models.decoding import Decoding


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory as the demo leaves it: demo/blip/model, demo/rbm/model; and wrong/, of another encoder."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def lstm(tmp_path_factory):
    """Directory of an LSTM captioner."""
    return make_lstm_captioner(tmp_path_factory.mktemp("models") / "lstm")


@pytest.fixture(scope="session")
def files():
    """Sixteen PNG files, each of its own colours and size."""
    return make_files()


@pytest.fixture(scope="session")
def predicted(models, files):
    """The predictor's captions of all files."""

    def predicted(rbm, decoding=Decoding(), rerank=None):  # noqa: B008 - frozen
        return predict(models, files, rbm, decoding, rerank)

    return predicted


@pytest.fixture
def serve_log(caplog, monkeypatch):
    """What Serve's logger gets, as caplog; Ray and Serve, once started in this process, keep it from caplog itself."""
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "ray.serve")
    yield caplog
    logger.removeHandler(caplog.handler)
