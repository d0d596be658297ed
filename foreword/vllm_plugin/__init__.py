"""vLLM plugin: the same soft prompts on an unmodified vLLM.

In: a vLLM process, which loads this package by its entry points: `register` in every process, the
endpoint plugin in those that serve HTTP. Out: a KV connector and routes for prompts; nothing unless
`VLLM_PLUGINS` names the plugin. Only `connector` and `endpoint` import vLLM; all that decides or
computes is in the other modules. Knows no training, and not foreword's own engine.
"""

import os

NAME = "foreword"
CONNECTOR = "ForewordConnector"


def register() -> None:
    """Take part in a vLLM process that was asked for it.

    vLLM lets an error of this function end the process: a release that was not tested does not
    start.

    Raises:
        DependencyError: a release of vLLM or transformers outside the tested range.
    """
    if NAME not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    from foreword.vllm_plugin import signing, versions

    versions.check_vllm()
    signing.ensure_secret()
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, f"{__name__}.connector", CONNECTOR)
