"""Who of a study's sites may be asked now: a member whose keys are those of the signed study."""

from fedward_common.ids import SiteId
from fedward_common.study.spec import StudySpec
from fedward_server.ports import Roster, SiteStatus


def is_named_member(roster: Roster, study: StudySpec, site: SiteId) -> bool:
    """Whether a site is a member under the node key that the study names (rules 15).

    Asked before each round, for streams as for messages. A site that enrolled again under its old
    name, with other keys, is another one to the study: it needs a new digest and new approvals.
    """
    record, named = roster.find(site), study.site(site)
    return (
        record is not None
        and named is not None
        and record.status is SiteStatus.ACTIVE
        and record.node_key_sha256 == named.node_key_sha256
    )
