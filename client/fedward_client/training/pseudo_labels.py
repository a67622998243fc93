"""Labels that the model itself gives to patients without one, anew in every round.

Lee 2013, "Pseudo-label", with the round's model as the teacher. A pseudo-label is a function of the
patient's own records and of the model that the coordinator sent, which is public or noised: no
patient has a part in another's. So an unlabelled patient is a privacy unit as any other, with a
gradient of its own that is clipped and noised, and nothing is released or charged besides.
"""

import numpy as np

from fedward_client.training.weights import record_scores
from fedward_common.arrays import Tensors
from fedward_common.study.encoding import PatientRecords, with_labels
from fedward_common.study.spec import StudySpec


def with_pseudo_labels(
    study: StudySpec, weights: Tensors, records: PatientRecords
) -> PatientRecords:
    """`records` of which every one has a label; without the patients for whom none is sure enough.

    Who has a label keeps it. Of a patient without one (NaN) the class is the one on whose side the
    mean score of the own records is, if it is at least the study's `confidence` sure; otherwise the
    patient is left out of this round, which is a gradient of zero. Each patient by itself: leaving
    one out changes no other's label.

    Raises:
        ProtocolError: `weights` are not the study's model's.
    """
    recipe = study.training.pseudo_labels
    if recipe is None:
        return records
    missing, labels = np.isnan(records.labels), records.labels.copy()
    owners = records.patient[missing]
    scores = record_scores(study, weights, records.features[missing])
    for owner in np.unique(owners):
        own = scores[owners == owner]
        mean = float(own.sum() / len(own))
        if max(mean, 1.0 - mean) >= recipe.confidence:
            labels[records.patient == owner] = 1.0 if mean >= 0.5 else 0.0
    return with_labels(records, labels)
