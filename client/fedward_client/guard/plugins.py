"""Whether a study's model may be built here: built in, or a plugin that a person approved.

The guard hashes a plugin's files and never runs one. The tensors of such a model stand in the
signed study, so that an update can be checked without it.
"""

from fedward_client.approvals import Standing
from fedward_common.errors import PolicyRefused, ProtocolError
from fedward_common.models.plugins import BUILT_IN, find_plugin
from fedward_common.study.spec import DpSgd, StudySpec


def approved_plugin(study: StudySpec, standing: Standing) -> str | None:
    """The SHA-256 of the approved plugin that builds the study's model; None when none is needed.

    A name that neither a plugin nor the registry knows is left to the registry.

    Raises:
        PolicyRefused: nobody approved this package, in this version, with these files.
        ProtocolError: the study does not write out the model's tensors.
    """
    if study.model.name in BUILT_IN or not isinstance(study.dp, DpSgd):
        return None
    plugin = find_plugin(study.model.name)
    if plugin is None:
        return None
    if (plugin.package, plugin.version, plugin.sha256) not in standing.plugins(plugin.model):
        raise PolicyRefused(
            f"Site policy refuses study {study.id}: nobody of this site approved the plugin "
            f"{plugin.package} {plugin.version} with the files {plugin.sha256} for model "
            f"{plugin.model!r}. It would run with this study's patients before it: review it, then "
            "`fedward-client plugin approve`"
        )
    if not study.model.tensors:
        raise ProtocolError(
            f"study {study.id}: expected the tensors of the plugin model {plugin.model!r} written "
            "out in it, found none"
        )
    return plugin.sha256
