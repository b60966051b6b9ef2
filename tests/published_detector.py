"""A loader, a detector and an evaluation that follow the rules of Fed_WSVAD's and AR-Net's, in other words."""

from __future__ import annotations

import os
import pickle
import random

import numpy as np
import torch

LONGEST = 300
COPIES = 16


class PublishedDataset(torch.utils.data.Dataset):
    """Videos from the feature folder; pairs of an anomalous and a normal one, padded with zeros, for training."""

    def __init__(self, root, dataset, train):
        folder = os.path.join(root, dataset)
        self.features = os.path.join(folder, "features_video", "i3d", "combine")
        self.in_memory = {
            name: np.load(os.path.join(self.features, name, "feature.npy")) for name in os.listdir(self.features)
        }
        with open(os.path.join(folder, "train_split.txt")) as file:
            train_names = [line.replace("\n", "") for line in file.readlines()]
        with open(os.path.join(folder, "test_split.txt")) as file:
            self.test_names = [line.replace("\n", "") for line in file.readlines()]
        with open(os.path.join(folder, "GT", "video_label.pickle"), "rb") as file:
            labels = pickle.load(file)
        self.anomalous = [name for name in train_names if labels[name] == [1.0]]
        self.normal = [name for name in train_names if labels[name] != [1.0]]
        self.train = train

    def __len__(self):
        return len(self.anomalous) + len(self.normal) if self.train else len(self.test_names)

    def __getitem__(self, index):
        if self.train:
            return self._padded(random.choice(self.anomalous)), self._padded(random.choice(self.normal))
        name = self.test_names[index]
        return self.in_memory[name], name

    def _padded(self, name):
        feature = self.in_memory[name]
        missing = LONGEST - len(feature)
        return torch.from_numpy(np.concatenate([feature, np.zeros((missing, *feature.shape[1:]), np.float32)]))


class Detector(torch.nn.Module):
    """A score for each clip, from its mean statistic."""

    def __init__(self, channels):
        super().__init__()
        self.score = torch.nn.Linear(channels, 1)

    def forward(self, features):
        return torch.sigmoid(self.score(features[..., 0, :]))


def evaluate(detector, dataset, ground_truth):
    """Scores and labels of all frames of the test videos, each score repeated."""
    with open(os.path.join(ground_truth, "frame_label.pickle"), "rb") as file:
        frame_labels = pickle.load(file)
    with open(os.path.join(ground_truth, "video_label.pickle"), "rb") as file:
        video_labels = pickle.load(file)
    all_scores, all_labels = np.zeros(0), np.zeros(0)
    for index in range(len(dataset)):
        feature, name = dataset[index]
        with torch.no_grad():
            scores = detector(torch.from_numpy(feature)[None]).numpy().reshape(-1)
        assert video_labels[name] in ([1.0], [0.0])
        all_scores = np.concatenate((all_scores, scores.repeat(COPIES)))
        all_labels = np.concatenate((all_labels, frame_labels[name][: len(scores.repeat(COPIES))]))
    return all_scores, all_labels
