"""What converts in place of an estimator that does not: the way out that an error names."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline

DEFAULT = "docs/support-sklearn.md lists what converts; replace the step"
INSTEAD = {
    "Birch": "KMeans on its subcluster centres converts",
    "BisectingKMeans": "KMeans converts",
    "CalibratedClassifierCV": "method='sigmoid' converts",
    "CountVectorizer": "token_pattern='[a-zA-Z0-9_]{2,}' splits non-ASCII text alike on both sides",
    "TfidfVectorizer": "token_pattern='[a-zA-Z0-9_]{2,}' splits non-ASCII text alike on both sides",
    "DictVectorizer": "a device feeds columns: put OneHotEncoder over them",
    "FeatureHasher": "a graph cannot hash text: OneHotEncoder with max_categories keeps the width bounded",
    "FixedThresholdClassifier": "TunedThresholdClassifierCV converts",
    "GaussianProcessClassifier": "two classes convert; SVC converts for more",
    "HashingVectorizer": "a graph cannot hash text: TfidfVectorizer with max_features keeps the width bounded",
    "HistGradientBoostingClassifier": "one-hot encode the categories before it",
    "HistGradientBoostingRegressor": "one-hot encode the categories before it",
    "Isomap": "PCA converts",
    "KNNImputer": "SimpleImputer converts",
    "KNeighborsTransformer": "KNeighborsClassifier and KNeighborsRegressor convert",
    "KernelPCA": "float32 loses its small eigenvalues: PCA converts",
    "LabelEncoder": "targets are no input of a device: leave it out, classes travel in the manifest",
    "LabelBinarizer": "targets are no input of a device: leave it out, classes travel in the manifest",
    "MultiLabelBinarizer": "targets are no input of a device: leave it out",
    "LabelPropagation": "SelfTrainingClassifier converts",
    "LabelSpreading": "SelfTrainingClassifier converts",
    "LatentDirichletAllocation": "it iterates per row: TruncatedSVD converts",
    "LocalOutlierFactor": "IsolationForest, OneClassSVM and EllipticEnvelope convert",
    "LocallyLinearEmbedding": "PCA converts",
    "MiniBatchDictionaryLearning": "it iterates per row: PCA and FastICA convert",
    "DictionaryLearning": "it iterates per row: PCA and FastICA convert",
    "SparseCoder": "it iterates per row: PCA and FastICA convert",
    "MiniBatchNMF": "it iterates per row: TruncatedSVD converts",
    "NMF": "it iterates per row: TruncatedSVD converts",
    "MiniBatchSparsePCA": "PCA converts",
    "SparsePCA": "PCA converts",
    "NearestCentroid": "LinearDiscriminantAnalysis converts",
    "Nystroem": "float32 loses its small eigenvalues: RBFSampler converts",
    "OneHotEncoder": "categories must be strings or whole numbers: KBinsDiscretizer takes measured values",
    "OneVsOneClassifier": "OneVsRestClassifier converts",
    "OutputCodeClassifier": "OneVsRestClassifier converts",
    "PatchExtractor": "cut patches before the model",
    "PolynomialCountSketch": "PolynomialFeatures and RBFSampler convert",
    "QuantileTransformer": "PowerTransformer and KBinsDiscretizer convert",
    "RadiusNeighborsTransformer": "KNeighborsClassifier and KNeighborsRegressor convert",
    "RandomTreesEmbedding": "give sparse_output=False and put a forest in its place",
    "RegressorChain": "MultiOutputRegressor converts",
    **dict.fromkeys(("LGBMClassifier", "LGBMRegressor"), "booster_.save_model('model.txt') makes a file that converts"),
    **dict.fromkeys(("XGBClassifier", "XGBRegressor"), "save_model('model.json') makes a file that converts"),
    "TargetEncoder": "two classes or one value convert; OneHotEncoder for more",
}


def way_out(estimator: Any) -> str:
    """Return what to do instead of `estimator`, of its last step first where it is a pipeline."""
    steps = [step for _, step in estimator.steps[::-1]] if isinstance(estimator, Pipeline) else [estimator]
    names = [type(step).__name__ for step in steps]
    return next((INSTEAD[name] for name in names if name in INSTEAD), DEFAULT)
