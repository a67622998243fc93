"""`fedward-client studies disclosure`: what a study's claim of privacy says before approval."""

from typing import Any

from fedward_client.budget import site_ledger
from fedward_client.settings import SiteSettings
from fedward_common.privacy.accounting import epsilon_admission
from fedward_common.privacy.disclosure import KnownFacts, disclosure
from fedward_common.study.signed import SignedStudy


def study_disclosure(settings: SiteSettings, signed_study: bytes) -> dict[str, Any]:
    """The disclosure of a signed study as JSON, with what this site's ledger reserved for it.

    Before the study was admitted here, what it was charged is missing.

    Raises:
        ProtocolError, SignatureRefused: it is not a signed study.
        ConfigError: a plan or a release without known accounting.
        LedgerError: the site's ledger is damaged.
    """
    study = SignedStudy.parse(signed_study).verify()
    own = [
        account.reservation
        for account in site_ledger(settings).accounts
        if account.reservation.study == study.digest
    ]
    epsilons = [epsilon_admission([one.event], delta=one.delta) for one in own]
    charged = dict(zip([settings.site], epsilons, strict=False))
    return disclosure(study, KnownFacts(charged=charged or None)).as_json()
