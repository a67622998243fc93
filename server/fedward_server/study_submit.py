"""`study submit`: keys that the parties confirmed, the lead's signature, the study store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import ConfigError
from fedward_common.study.files import SiteKeys
from fedward_common.study.signed import SignedStudy
from fedward_common.study.spec import StudySpec
from fedward_common.trust.signing import SigningKey
from fedward_server.adapters.start_weights import keep_start_weights
from fedward_server.runs import store_study
from fedward_server.settings import CoordinatorSettings
from fedward_server.study_files import KeysFile, checked_study, registry_keys, write_signed


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A signed study that is in the coordinator's store, and the file that hospitals get."""

    study: StudySpec
    signed: SignedStudy
    file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A study file with the sites' keys, ready for the lead to look at and to sign."""

    settings: CoordinatorSettings
    file: Path
    keys: Mapping[str, SiteKeys]

    @classmethod
    def prepare(
        cls, settings: CoordinatorSettings, file: Path, *, keys_file: Path | None
    ) -> "Submission":
        """The submission of `file` with the keys of `keys_file`, or else of the registry.

        Raises:
            ConfigError: a confirmed key is not the one under which the coordinator knows the site:
                that site would never be asked, or somebody put another key in its place.
        """
        registry = registry_keys(settings)
        keys = registry if keys_file is None else KeysFile.read(keys_file)
        if keys.federation != settings.federation:
            raise ConfigError(
                f"{keys_file}: expected keys of federation {settings.federation}, found another's"
            )
        known = registry.site_keys
        differing = sorted(
            site for site, one in keys.site_keys.items() if known.get(site, one) != one
        )
        if differing:
            raise ConfigError(
                f"{keys_file}: expected the keys of the coordinator's registry, found others for "
                f"{', '.join(differing)}. Ask those hospitals which keys are theirs, by telephone"
            )
        return cls(settings=settings, file=file, keys=keys.site_keys)

    def spec(self, key: SigningKey) -> StudySpec:
        """The study as it would be signed, to look at first.

        Raises:
            ConfigError: one line per problem of the study file.
        """
        return checked_study(self.file, keys=self.keys, key=key)

    def sign(
        self,
        spec: StudySpec,
        key: SigningKey,
        *,
        out: Path | None,
        start_weights: Path | None = None,
    ) -> Submitted:
        """Signs `spec`, keeps it on the coordinator and writes the file for the hospitals.

        Raises:
            ConfigError: `start_weights` is not the file that the study begins with.
        """
        keep_start_weights(self.settings.state, spec, start_weights)
        signed = SignedStudy.sign(spec, key)
        study = store_study(self.settings, signed.canonical)
        target = out or self.file.with_name(f"{study.id}.signed.json")
        write_signed(target, signed)
        return Submitted(study=study, signed=signed, file=target)
